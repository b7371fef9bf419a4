"""Samples that share a row: a leak is found however many rows a micro-batch has, and none is imagined."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.probes.profiles import TaskKind
from rankwise.runners.build import InvalidTrial
from rankwise.runners.recipe import Example
from rankwise.runners.trial.checks import int8_token_by_token, require_separate_samples
from rankwise.runners.trial.loop import Session, open_session

ROW = Example(array("i", [2 + (31 * at) % 900 for at in range(30)]), starts=array("i", [0, 11, 24]))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def open_llama(path: Path, *, micro_batch: int = 1, **level: Any) -> Session:
    candidate = Candidate(
        adapter=Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj")),
        level=Level(**level),
        recipe=Recipe(max_length=64, effective_batch=4, packing=True),
        micro_batch=micro_batch,
        learning_rate=1e-3,
    )
    return open_session(
        str(path),
        task={"kind": "causal-lm", "labels": []},
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate, task_kind=TaskKind.CAUSAL_LM, base_model="tiny", total_steps=100
        ),
        pad_id=0,
        seed=5,
        total_steps=10,
        on_cpu=True,
    )


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_samples_that_are_kept_apart(tiny_llama: Path, attention: str, micro_batch: int) -> None:
    require_separate_samples(open_llama(tiny_llama, micro_batch=micro_batch, attention=attention), ROW)


def test_a_leak(tiny_llama: Path) -> None:
    """A cache makes transformers overlook where samples begin."""
    session = open_llama(tiny_llama)
    session.model.config.use_cache = True  # type: ignore[union-attr]
    with pytest.raises(InvalidTrial, match="samples that share a row see each other"):
        require_separate_samples(session, ROW)


def test_a_leak_in_batches_of_several_rows_only(tiny_llama: Path) -> None:
    """As FlashAttention has it: positions are looked at in batches of one row only."""

    def forget(_: Any, __: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if len(inputs["input_ids"]) > 1:
            inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
        return (), inputs

    single, several = (open_llama(tiny_llama, micro_batch=rows) for rows in (1, 4))
    for session in (single, several):
        session.model.register_forward_pre_hook(forget, with_kwargs=True)
    require_separate_samples(single, ROW)
    with pytest.raises(InvalidTrial, match="see each other"):
        require_separate_samples(several, ROW)


def test_outliers_of_int8_products_are_no_leak(tiny_llama: Path) -> None:
    """Which columns are outliers is found over all tokens: here all columns may be."""
    session = open_llama(tiny_llama, quantization=Quantization.INT8)
    states = [module.state for module in session.model.modules() if hasattr(module, "state")]
    assert states
    for state in states:
        state.threshold = 1.0
    with int8_token_by_token(session.model):
        assert {state.threshold for state in states} == {0.0}
    assert {state.threshold for state in states} == {1.0}
    require_separate_samples(session, ROW)


def test_the_row_is_cut_after_its_second_sample(tiny_llama: Path) -> None:
    """So that the check needs less memory than a step."""
    session, seen = open_llama(tiny_llama, micro_batch=4), []
    session.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    require_separate_samples(session, ROW)
    assert seen == [(2, 24), (2, 24)]
    assert torch.is_grad_enabled()
