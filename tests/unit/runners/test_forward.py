from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from rankwise.runners.build import InvalidTrial
from rankwise.runners.forward import batch_loss, own_loss, predictions, run_model

CLASSES = torch.tensor([0, 2])
SCORES = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
BATCH = {"x": torch.ones(2, 3), "labels": CLASSES}


class Named(nn.Module):
    def forward(self, b: Any, a: Any) -> Any:
        return a, b


class Single(nn.Module):
    def forward(self, image: Any) -> Any:
        return image


class WithTarget(nn.Module):
    def forward(self, image: Any, y: Any = None) -> Any:
        return image, y


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


class NamesATarget(nn.Module):
    def forward(self, y: Any) -> Any:
        return y


def test_arguments_are_matched_by_name() -> None:
    assert run_model(Named(), {"a": 1, "b": 2, "labels": CLASSES}) == (1, 2)


def test_a_single_input_needs_no_name() -> None:
    assert run_model(Single(), BATCH) is BATCH["x"]


def test_a_target_is_passed_where_it_is_taken() -> None:
    assert run_model(WithTarget(), BATCH) == (BATCH["x"], CLASSES)
    assert run_model(WithTarget(), {"x": 1}) == (1, None)
    assert run_model(Anything(), BATCH) == ((), BATCH)


def test_an_input_that_is_named_like_a_target_stays_an_input() -> None:
    assert run_model(NamesATarget(), {"y": 1, "labels": CLASSES}) == 1


def test_what_tokenizers_add_is_left_out_where_it_is_not_taken() -> None:
    assert run_model(Single(), {"image": 1, "attention_mask": 2, "token_type_ids": 3}) == 1


def test_names_that_do_not_go_together_are_shown() -> None:
    with pytest.raises(InvalidTrial, match="Named takes b, a, and the data have a, c"):
        run_model(Named(), {"a": 1, "c": 2})


@pytest.mark.parametrize(
    "output",
    [
        ImageClassifierOutput(loss=torch.tensor(3.0), logits=SCORES),
        {"loss": torch.tensor([3.0]), "scores": SCORES},
        (torch.tensor(3.0), SCORES),
    ],
)
def test_a_models_own_loss_is_taken(output: Any) -> None:
    assert float(batch_loss(output, BATCH)) == 3.0
    assert predictions(output) is SCORES


def test_a_single_number_is_a_loss() -> None:
    assert float(batch_loss(torch.tensor(3.0), {"x": BATCH["x"]})) == 3.0
    assert predictions(torch.tensor(3.0)) is None


@pytest.mark.parametrize(
    "output", [SCORES, (SCORES, None), {"anything": SCORES}, {"a": None, "logits": SCORES}]
)
def test_classes_have_their_cross_entropy(output: Any) -> None:
    assert own_loss(output) is None
    expected = nn.functional.cross_entropy(SCORES, CLASSES)
    assert torch.equal(batch_loss(output, BATCH), expected)


@pytest.mark.parametrize(("returned", "wanted"), [((2, 1), (2,)), ((2, 3, 1), (2, 3)), ((2,), (2, 1))])
def test_numbers_have_their_squared_error_whatever_axes_of_length_one(
    returned: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    loss = batch_loss(torch.full(returned, 3.0), {"x": torch.ones(2), "labels": torch.ones(wanted)})
    assert float(loss) == 4.0


def test_each_token_predicts_the_next() -> None:
    logits = torch.randn(2, 4, 5)
    labels = torch.tensor([[-100, 1, 2, 3], [-100, 4, -100, -100]])
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.equal(batch_loss(logits, {"input_ids": labels, "labels": labels}), expected)


@pytest.mark.parametrize(
    ("output", "batch", "message"),
    [
        (SCORES, {"x": BATCH["x"]}, "returned Tensor without a loss, and the data have no target"),
        (torch.ones(2, 4), {"x": BATCH["x"], "labels": torch.ones(2, 3)}, r"shape \[4\] a row.* has \[3\]"),
        (torch.ones(2, 4, 4), BATCH, r"returns \[2, 4, 4\] for 2 classes"),
        (None, BATCH, "neither a loss nor a tensor"),
    ],
)
def test_what_cannot_be_trained_says_why(output: Any, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTrial, match=message):
        batch_loss(output, batch)
