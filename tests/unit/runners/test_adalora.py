"""Ranks are pruned when the plan says so, by the loop that trial and exported script share."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.probes.profiles import TaskKind
from rankwise.runners.adalora import allocate_ranks
from rankwise.runners.build import InvalidTrial
from rankwise.runners.recipe import Example
from rankwise.runners.trial.loop import Session, open_session, run_steps

TOTAL_STEPS = 6
KEPT, INITIAL = 4, 6
MATRICES = 4  # q_proj and v_proj in two layers
ROWS = [Example(array("i", [2 + (31 * row + at) % 900 for at in range(9 + row)])) for row in range(4)]


@pytest.fixture
def session(tiny_llama: Path) -> Session:
    candidate = Candidate(
        adapter=Adapter(
            method=Method.ADALORA,
            rank=KEPT,
            initial_rank=INITIAL,
            alpha=2.0 * INITIAL,
            targets=("q_proj", "v_proj"),
        ),
        level=Level(),
        recipe=Recipe(max_length=64, effective_batch=4, schedule="constant", warmup_ratio=0.0),
        micro_batch=1,
        learning_rate=1e-2,
    )
    return open_session(
        str(tiny_llama),
        task={"kind": "causal-lm", "labels": []},
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate, task_kind=TaskKind.CAUSAL_LM, base_model="tiny", total_steps=TOTAL_STEPS
        ),
        pad_id=0,
        seed=5,
        total_steps=TOTAL_STEPS,
        on_cpu=True,
    )


def ranks_left(session: Session) -> int:
    return sum(
        int(parameter.count_nonzero())
        for name, parameter in session.model.named_parameters()
        if "lora_E" in name
    )


def test_each_optimizer_step_counts_once_and_ranks_are_pruned_by_plan(session: Session) -> None:
    """Whatever the micro-batches: four of them make a step here."""
    asked: list[int] = []
    tuner: Any = session.tuner
    allocate = tuner.update_and_allocate
    tuner.update_and_allocate = lambda step: (asked.append(step), allocate(step))
    left = [ranks_left(session) for _ in run_steps(session, ROWS, iter([[0, 1, 2, 3]] * TOTAL_STEPS))]
    assert asked == list(range(TOTAL_STEPS))
    assert left[0] == INITIAL * MATRICES
    assert left == sorted(left, reverse=True)
    config = tuner.peft_config["default"]
    assert left[config.total_step - config.tfinal :] == [KEPT * MATRICES] * config.tfinal


def test_importance_is_taken_from_the_gradients_of_the_whole_step(session: Session) -> None:
    """It is asked for after the optimizer's step and before gradients are cleared."""
    tuner: Any = session.tuner
    seen = []
    allocate = tuner.update_and_allocate

    def look(step: int) -> None:
        values = [(n, p) for n, p in tuner.model.named_parameters() if "lora_E" in n]
        seen.append(all(p.grad is not None and p.detach().abs().max() > 0 for _, p in values))
        allocate(step)

    tuner.update_and_allocate = look
    list(run_steps(session, ROWS, iter([[0, 1, 2, 3]])))
    assert seen == [True]


def test_an_adapter_outside_the_forward_path(session: Session) -> None:
    with pytest.raises(InvalidTrial, match=r"no gradient reaches .*lora_"):
        allocate_ranks(session.tuner, 0, skipped=False)  # no backward pass has been made


def test_a_skipped_step_is_left_out(session: Session) -> None:
    allocate_ranks(session.tuner, 0, skipped=True)
    assert session.tuner is not None
    assert session.tuner.rankallocator.ipt == {}


def test_pruning_without_a_single_step_to_go_by(session: Session) -> None:
    for step in range(TOTAL_STEPS // 2):
        allocate_ranks(session.tuner, step, skipped=True)
    with pytest.raises(InvalidTrial, match="gradients overflowed in all of the first 3 steps"):
        allocate_ranks(session.tuner, TOTAL_STEPS // 2, skipped=False)
