"""Held-out rows judged by small real models; rows that samples share, which must not see each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from rankwise.runners.build import census_of
from rankwise.runners.recipe import Example, collate, pack
from rankwise.runners.trial.evaluation import evaluate
from rankwise.runners.trial.loop import Session

VOCABULARY = 100
PAD_ID = 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for each other wherever other work runs beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_llama(attention: str = "sdpa") -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return build(LlamaForCausalLM, config, attention)


def small_gpt2(attention: str = "sdpa") -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return build(GPT2LMHeadModel, config, attention)


def small_t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_ff=64,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return build(T5ForConditionalGeneration, config)


def small_bert(labels: int) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=labels,
    )
    return build(BertForSequenceClassification, config)


def build(kind: Any, config: Any, attention: str | None = None) -> PreTrainedModel:
    """With weights so large that attention is felt: with the usual ones it all but averages."""
    torch.manual_seed(0)
    model: PreTrainedModel = kind._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.config.use_cache = False
    return model.eval()


def session_of(model: torch.nn.Module, micro_batch: int = 3) -> Session:
    """What evaluation needs of a session; nothing is trained."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Session(
        accelerator=Accelerator(cpu=True),
        model=model,
        optimizer=optimizer,
        schedule=None,
        candidate={"micro_batch": micro_batch, "recipe": {"effective_batch": 4}},
        pad_id=PAD_ID,
        census=census_of(model),
    )


def tokens(length: int, start: int = 0) -> list[int]:
    return [1 + (start + 37 * at) % (VOCABULARY - 1) for at in range(length)]


def texts(*lengths: int) -> list[Example]:
    return [Example(tokens(length, 11 * row)) for row, length in enumerate(lengths)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [small_llama, small_gpt2])
class TestSamplesThatShareARow:
    """A batch of two rows of different lengths, so that there is padding behind samples, too."""

    SAMPLES = texts(7, 5, 1, 9, 4, 3)

    def logits(self, model: PreTrainedModel, samples: list[Example]) -> dict[tuple[int, ...], torch.Tensor]:
        """Of each sample, by its tokens."""
        rows = pack(samples, max_length=16, seed="0")
        assert len(rows) == 2
        assert len({len(row.input_ids) for row in rows}) == 2
        with torch.no_grad():
            batch = collate(rows, pad_id=PAD_ID)
            found = model(**batch).logits
        logits = {}
        for row, values in zip(rows, found, strict=True):
            assert row.starts is not None
            ids, borders = list(row.input_ids), [*row.starts, len(row.input_ids)]
            for first, last in pairwise(borders):
                logits[tuple(ids[first:last])] = values[first:last]
        return logits

    def test_get_the_logits_that_they_get_alone(
        self, make: Callable[[str], PreTrainedModel], attention: str
    ) -> None:
        model = make(attention)
        packed = self.logits(model, self.SAMPLES)
        for sample in self.SAMPLES:
            with torch.no_grad():
                alone = model(**collate([sample], pad_id=PAD_ID)).logits[0]
            torch.testing.assert_close(packed[tuple(sample.input_ids)], alone, rtol=1e-4, atol=1e-4)

    def test_do_not_feel_their_neighbours(
        self, make: Callable[[str], PreTrainedModel], attention: str
    ) -> None:
        model = make(attention)
        changed = [*self.SAMPLES]
        changed[3] = Example([token % 98 + 2 for token in self.SAMPLES[3].input_ids])
        before, after = (self.logits(model, samples) for samples in (self.SAMPLES, changed))
        for sample in (*self.SAMPLES[:3], *self.SAMPLES[4:]):
            key = tuple(sample.input_ids)
            torch.testing.assert_close(before[key], after[key], rtol=0, atol=0)

    def test_would_without_their_positions(
        self, make: Callable[[str], PreTrainedModel], attention: str
    ) -> None:
        """So that the tests above are known to notice attention that looks across."""
        model = make(attention)
        first, second = self.SAMPLES[0], self.SAMPLES[3]
        whole = [*first.input_ids, *second.input_ids]
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([second.input_ids])).logits[0]
            beside = model(input_ids=torch.tensor([whole])).logits[0, len(first.input_ids) :]
        assert (alone - beside).abs().max() > 1e-2

    def test_have_the_loss_and_the_gradient_that_they_have_alone(
        self, make: Callable[[str], PreTrainedModel], attention: str
    ) -> None:
        model = make(attention)
        gradients, losses = [], []
        for rows in (self.SAMPLES, pack(self.SAMPLES, max_length=16, seed="0")):
            model.zero_grad()
            loss = model(**collate(rows, pad_id=PAD_ID)).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        texts(5, 40, 11, 2, 2),
        [Example(tokens(9), mask=[0, 0, 0, 1, 1, 0, 1, 1, 1]), *texts(4, 6)],
        pack(texts(7, 5, 1, 9, 4, 3), max_length=16, seed="0"),
    ],
    ids=["texts", "masked", "packed"],
)
@pytest.mark.parametrize("micro_batch", [1, 8])
def test_loss_of_a_language_model_is_the_mean_over_what_it_is_to_predict(
    rows: list[Example], micro_batch: int
) -> None:
    model = small_llama()
    with torch.no_grad():
        expected = model(**collate(rows, pad_id=PAD_ID)).loss.item()
    found = evaluate(session_of(model, micro_batch), rows)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.rows == len(rows)
    assert found.metric_name == "perplexity"
    assert found.metric_value == pytest.approx(math.exp(expected), rel=1e-4)
    assert found.metrics["perplexity"] == found.metric_value
    assert found.metrics["token_accuracy"] == pytest.approx(share_of_likeliest(model, rows))
    assert found.loss_se is not None
    assert found.loss_se > 0
    assert model.training


@torch.no_grad()
def share_of_likeliest(model: PreTrainedModel, rows: list[Example]) -> float:
    batch = collate(rows, pad_id=PAD_ID)
    model.eval()
    guesses, labels = model(**batch).logits[:, :-1].argmax(-1), batch["labels"][:, 1:]
    model.train()
    return float((guesses == labels).sum() / (labels != -100).sum())


def test_masked_tokens_do_not_count() -> None:
    """They are read all the same: what is learnt follows them."""
    model = small_llama()
    losses = []
    for prompt in (tokens(3), tokens(3, 50)):
        whole, part = (Example([*prompt, *tokens(4)], mask=mask) for mask in (None, [0, 0, 0, 1, 1, 1, 1]))
        losses.append([evaluate(session_of(model), [row]).loss for row in (whole, part)])
    assert losses[0][1] != pytest.approx(losses[0][0], rel=1e-3)
    assert losses[0][1] != pytest.approx(losses[1][1], rel=1e-3)


def test_a_perplexity_beyond_all_numbers_is_none() -> None:
    model = small_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    found = evaluate(session_of(model), texts(9, 4))
    assert (found.metric_name, found.metric_value) == ("perplexity", None)
    assert [*found.metrics] == ["token_accuracy"]


def test_targets_of_an_encoder_decoder() -> None:
    rows = [
        Example(tokens(5), target_ids=tokens(7, 3)),
        Example(tokens(9, 4), target_ids=tokens(2, 8)),
        Example(tokens(3, 9), target_ids=tokens(3, 1)),
    ]
    model = small_t5()
    with torch.no_grad():
        expected = model(**collate(rows, pad_id=PAD_ID)).loss.item()
    found = evaluate(session_of(model, 2), rows)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.metric_name == "perplexity"


def test_numbers() -> None:
    rows = [Example(tokens(length), value=length / 2) for length in (5, 9, 3, 7, 8)]
    model = small_bert(labels=1)
    with torch.no_grad():
        output = model(**collate(rows, pad_id=PAD_ID))
    assert model.config.problem_type == "regression"
    errors = output.logits.squeeze(1) - torch.tensor([row.value for row in rows])
    found = evaluate(session_of(model, 2), rows)
    assert found.loss == pytest.approx(output.loss.item(), rel=1e-5)
    assert (found.metric_name, found.rows) == ("mae", 5)
    assert found.metric_value == pytest.approx(errors.abs().mean().item(), rel=1e-5)
    assert found.metrics == {
        "mae": found.metric_value,
        "rmse": pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5),
    }


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_classes(micro_batch: int) -> None:
    rows = [
        Example(tokens(length, length), label=length % 3, token_types=[0] * (length - 1) + [1])
        for length in (5, 9, 3, 7, 8)
    ]
    model = small_bert(labels=3)
    with torch.no_grad():
        output = model(**collate(rows, pad_id=PAD_ID))
    right = output.logits.argmax(-1) == torch.tensor([row.label for row in rows])
    found = evaluate(session_of(model, micro_batch), rows)
    assert found.loss == pytest.approx(output.loss.item(), rel=1e-5)
    assert (found.metric_name, found.metric_value) == ("accuracy", pytest.approx(right.float().mean().item()))
    assert [*found.metrics] == ["accuracy", "macro_f1"]


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_scores_are_in_the_order_of_the_rows(micro_batch: int) -> None:
    """Which is not the order that they are judged in."""
    rows, model = texts(9, 4, 12, 6, 2), small_llama()
    alone = [evaluate(session_of(model), [row]).loss for row in rows]
    found = evaluate(session_of(model, micro_batch), rows)
    assert found.items == (8, 3, 11, 5, 1)
    means = [loss / items for loss, items in zip(found.losses, found.items, strict=True)]
    assert means == pytest.approx(alone, rel=1e-4)
    assert found.loss == pytest.approx(sum(found.losses) / sum(found.items))


class OwnLoss(torch.nn.Module):
    """Its loss is the greatest error in the batch: nobody can tell its rows apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.batches.append(len(x))
        predicted = x * self.weight
        target = torch.zeros_like(x) if labels is None else labels
        return {"loss": (predicted - target).abs().max() + 7.0, "embedding": predicted.sum(1)}


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_a_loss_of_the_modules_own_is_asked_for_one_row_at_a_time(micro_batch: int) -> None:
    rows = [
        Example(arrays={"x": np.full(2, number, np.float32)}, numbers=np.zeros(2, np.float32))
        for number in range(6)
    ]
    found = evaluate(session_of(OwnLoss(), micro_batch), rows)
    assert found.losses == pytest.approx([7.0 + number for number in range(6)])
    assert found.items == (1,) * 6


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_without_a_target_batches_have_one_size(micro_batch: int) -> None:
    rows = [Example(arrays={"x": np.full(2, number, np.float32)}) for number in range(6)]
    module = OwnLoss()
    found = evaluate(session_of(module, micro_batch), rows)
    assert module.batches == [4, 2]
    assert found.losses == pytest.approx([4 * 10.0, 2 * 12.0])
    assert (found.items, found.rows) == ((4, 2), 6)
