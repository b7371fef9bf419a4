"""Planted faults: each trains at full speed, and each is caught in the first steps."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe
from rankwise.runners.build import census_of, freeze_rest, make_optimizer, make_schedule
from rankwise.runners.recipe import Example, step_rows
from rankwise.runners.trial.checks import Diverged, InvalidTrial, ParameterWatch
from rankwise.runners.trial.job import checked
from rankwise.runners.trial.loop import Session, run_steps

ROWS = [Example(array("i", [1 + (7 * row + at) % 90 for at in range(6 + row)]), row % 2) for row in range(8)]
HEAD = ("classifier",)


def make_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return BertForSequenceClassification(config)


def add_lora(model: torch.nn.Module, **changes: Any) -> torch.nn.Module:
    config = {"target_modules": ["query", "value"], "modules_to_save": list(HEAD), **changes}
    return get_peft_model(model, LoraConfig(r=4, **config))


def take_checked_steps(
    model: torch.nn.Module,
    *,
    method: Method = Method.LORA,
    trained_modules: tuple[str, ...] = HEAD,
    unfrozen: tuple[str, ...] = (),
) -> None:
    """The first steps of a trial with this model."""
    candidate = Candidate(
        adapter=Adapter(method=method, trained_modules=trained_modules, unfrozen=unfrozen),
        level=Level(),
        recipe=Recipe(max_length=16, effective_batch=4, schedule="constant", warmup_ratio=0.0),
        micro_batch=4,
        learning_rate=1e-2,
    )
    form = to_json(candidate)
    optimizer = make_optimizer(model, form)
    schedule = make_schedule(optimizer, recipe=form["recipe"], total_steps=10)
    session = Session(
        Accelerator(cpu=True), model.train(), optimizer, schedule, form, pad_id=0, census=census_of(model)
    )
    steps = run_steps(session, ROWS, step_rows(len(ROWS), effective_batch=4, seed=0))
    list(checked(session, steps, 3, most=3))


class TestSound:
    def test_lora_with_its_head(self) -> None:
        take_checked_steps(add_lora(make_bert()))

    def test_dora(self) -> None:
        take_checked_steps(add_lora(make_bert(), use_dora=True))

    def test_ia3(self) -> None:
        config = IA3Config(
            target_modules=["key", "value"], feedforward_modules=[], modules_to_save=list(HEAD)
        )
        take_checked_steps(get_peft_model(make_bert(), config))

    def test_biases_and_a_head(self) -> None:
        model = make_bert()
        freeze_rest(model, ["bias", *HEAD], dtype=torch.float32)
        take_checked_steps(model, method=Method.BITFIT, unfrozen=("bias",))

    def test_full(self) -> None:
        take_checked_steps(make_bert(), method=Method.FULL, trained_modules=())

    def test_full_with_a_part_that_the_task_does_not_use(self) -> None:
        model = make_bert()
        model.spare = torch.nn.Linear(4, 4)
        take_checked_steps(model, method=Method.FULL, trained_modules=())

    def test_checkpointing_that_does_not_cut_the_gradient(self) -> None:
        model = make_bert()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        take_checked_steps(add_lora(model))


class Aliased(torch.nn.Module):
    """Calls one of its modules by a name under which PEFT does not see it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(100, 8)
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)
        self.aliases = (self.second,)
        self.classifier = torch.nn.Linear(8, 2)

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        hidden = self.aliases[0](self.first(self.embedding(input_ids))).mean(1)
        return SimpleNamespace(loss=torch.nn.functional.cross_entropy(self.classifier(hidden), labels))


def test_an_adapter_outside_the_forward_path() -> None:
    model = add_lora(Aliased(), target_modules=["first", "second"])
    with pytest.raises(InvalidTrial, match=r"2 of 6 trained parameters did not change.*second\.lora_A"):
        take_checked_steps(model)


def test_a_head_that_stayed_frozen() -> None:
    with pytest.raises(InvalidTrial, match="classifier"):
        take_checked_steps(add_lora(make_bert(), modules_to_save=None))


def test_a_trained_module_that_the_model_does_not_have() -> None:
    with pytest.raises(InvalidTrial, match="score"):
        take_checked_steps(add_lora(make_bert()), trained_modules=("score",))


def test_an_unfrozen_part_that_the_task_does_not_use() -> None:
    model = make_bert()
    model.spare = torch.nn.Linear(4, 4)
    freeze_rest(model, ["bias", "spare", *HEAD], dtype=torch.float32)
    with pytest.raises(InvalidTrial, match=r"2 of \d+ trained parameters did not change.*spare"):
        take_checked_steps(model, method=Method.BITFIT, unfrozen=("bias", "spare"))


@pytest.mark.parametrize("kind", ["embedding", "norm of ones"])
def test_a_frozen_weight_that_moves(kind: str) -> None:
    model = add_lora(make_bert())
    embeddings = model.base_model.model.bert.embeddings
    frozen = embeddings.word_embeddings.weight if kind == "embedding" else embeddings.LayerNorm.weight

    def shrink(*_: object) -> None:
        frozen.data.mul_(0.999)

    model.register_forward_pre_hook(shrink)
    with pytest.raises(InvalidTrial, match=r"1 frozen parameters changed: .*embeddings"):
        take_checked_steps(model)


def test_inputs_without_gradient_under_reentrant_checkpointing() -> None:
    model = add_lora(make_bert())
    bert = model.base_model.model
    bert.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    bert.disable_input_require_grads()  # what old versions of transformers left to the caller
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"),
        pytest.raises(InvalidTrial, match="8 of 10 trained parameters did not change"),
    ):
        take_checked_steps(model)


def test_a_head_of_two_classes_that_was_trained_before_moves() -> None:
    # Two classes' biases move by the same in opposite directions: they stay opposite, and their sum 0.
    model = make_bert()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.25, -0.25]))
    watch = ParameterWatch(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        model.classifier.bias.copy_(torch.tensor([0.5, -0.5]))
    watch.check(model, lenient=False)
    still = ParameterWatch(model)
    with pytest.raises(InvalidTrial, match="did not change"):
        still.check(model, lenient=False)


def test_nothing_trained() -> None:
    model = make_bert().requires_grad_(False)
    with pytest.raises(InvalidTrial, match="every parameter is frozen"):
        ParameterWatch(model).check(model, lenient=True)


def test_full_fine_tuning_that_moves_nothing() -> None:
    model = make_bert()
    with pytest.raises(InvalidTrial, match="did not change"):
        ParameterWatch(model).check(model, lenient=True)


def test_a_loss_that_is_not_a_number() -> None:
    model = add_lora(make_bert())
    model.base_model.model.bert.pooler.dense.bias.data[3] = torch.nan
    with pytest.raises(Diverged, match="loss became nan at optimizer step 1"):
        take_checked_steps(model)
