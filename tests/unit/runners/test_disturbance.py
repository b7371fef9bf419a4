from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Measurement,
    Method,
    Outcome,
    Recipe,
    Rung,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.runners.classify import Ending
from rankwise.runners.disturbance import disturbed, is_spoilt, marked, may_repeat

MARKS = ("Another process took 2.0 GiB.", "The device was too hot.")
CANDIDATE = Candidate(
    adapter=Adapter(method=Method.IA3, targets=("k", "v")),
    level=Level(),
    recipe=Recipe(max_length=128),
    micro_batch=4,
    learning_rate=1e-3,
)
TRIAL = Trial(
    id="t",
    study_id="s",
    number=1,
    plan=TrialPlan(candidate=CANDIDATE, rung=Rung.PROBE),
    state=TrialState.FINISHED,
    outcome=Outcome.OK,
    measurement=Measurement(tokens_per_s=1.0),
)
FIRST_TIME: dict[str, Any] = {"disturbed_before": 0, "spent_s": 10.0, "wall_s": 20.0, "budget_s": 50.0}


@pytest.mark.parametrize(
    ("outcome", "rung", "spoilt"),
    [
        (Outcome.OK, Rung.PROBE, True),
        (Outcome.OK, Rung.TRAIN, False),
        (Outcome.OOM, Rung.PROBE, True),
        (Outcome.OOM, Rung.TRAIN, True),
        (Outcome.HOST_OOM, Rung.PROBE, True),
        (Outcome.DIVERGED, Rung.PROBE, False),
        (Outcome.CRASHED, Rung.TRAIN, False),
        (Outcome.LOST, Rung.PROBE, False),
    ],
)
def test_what_a_neighbour_can_spoil(outcome: Outcome, rung: Rung, spoilt: bool) -> None:
    assert is_spoilt(Ending(outcome), rung) is spoilt


def test_the_first_time_is_repeated() -> None:
    assert may_repeat([TRIAL], **FIRST_TIME)


@pytest.mark.parametrize(
    "changes", [{"disturbed_before": 1}, {"spent_s": 10.1}], ids=["second time", "no time left"]
)
def test_is_not_repeated(changes: dict[str, Any]) -> None:
    assert not may_repeat([TRIAL], **{**FIRST_TIME, **changes})


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.OOM])
def test_a_steady_neighbour_is_put_up_with(outcome: Outcome) -> None:
    hit = replace(TRIAL, outcome=outcome, measurement=marked(Ending(outcome), MARKS).measurement)
    assert not may_repeat([TRIAL, hit], **FIRST_TIME)


def test_marks_are_added_to_what_was_measured() -> None:
    measurement = Measurement(tokens_per_s=1.0)
    ending = Ending(Outcome.OK, measurement=measurement)
    assert marked(ending, MARKS) == replace(ending, measurement=replace(measurement, disturbances=MARKS))
    assert marked(Ending(Outcome.OOM, "CUDA out of memory"), MARKS) == Ending(
        Outcome.OOM, "CUDA out of memory", Measurement(disturbances=MARKS)
    )


def test_nothing_is_kept_of_what_is_repeated() -> None:
    assert disturbed(MARKS) == Ending(
        Outcome.DISTURBED, "Another process took 2.0 GiB. The device was too hot."
    )
