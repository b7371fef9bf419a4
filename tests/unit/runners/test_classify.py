from __future__ import annotations

import signal
from typing import Any

import pytest

from rankwise.optimizer.domain import HeldoutScores, Measurement, Outcome
from rankwise.runners.classify import classify

LEFT = {"cause": "finished", "exit_code": 0, "signal": None, "wall_s": 12.4}
RESULT = {"measurement": {"tokens_per_s": 100.0}}


def ended_by(number: int) -> dict[str, Any]:
    return {**LEFT, "exit_code": None, "signal": number}


def said(**changes: Any) -> dict[str, Any]:
    """The arguments of an attempt that went well, with changes."""
    return {
        "result": RESULT,
        "failure": None,
        "error": None,
        "end": LEFT,
        "kernel_oom_kills": 0,
        "log_tail": "",
        **changes,
    }


CASES: dict[str, tuple[dict[str, Any], Outcome, str]] = {
    "all processes killed": ({"end": None}, Outcome.LOST, "killed"),
    "time limit": ({"end": {**LEFT, "cause": "timeout"}}, Outcome.TIMEOUT, "after 12 s"),
    "memory limit": ({"end": {**LEFT, "cause": "memory-limit"}}, Outcome.OOM, "memory limit"),
    "host memory": ({"end": {**LEFT, "cause": "host-memory"}}, Outcome.HOST_OOM, "host ran short"),
    "disk limit": ({"end": {**LEFT, "cause": "disk-limit"}}, Outcome.CRASHED, "more of the disk"),
    "disk full": ({"end": {**LEFT, "cause": "disk-space"}}, Outcome.LOST, "short of space"),
    "server gone": ({"end": {**LEFT, "cause": "cancelled"}}, Outcome.LOST, "warm server went away"),
    "said oom": (
        {"result": None, "failure": {"outcome": "oom", "reason": "CUDA out of memory"}},
        Outcome.OOM,
        "CUDA out of memory",
    ),
    "said diverged": (
        {"result": None, "failure": {"outcome": "diverged", "reason": "loss became nan"}},
        Outcome.DIVERGED,
        "loss became nan",
    ),
    "said invalid": (
        {"result": None, "failure": {"outcome": "invalid", "reason": "nothing is trained"}},
        Outcome.INVALID,
        "nothing is trained",
    ),
    "refused": (
        {"result": None, "error": {"kind": "ModelError", "message": "no weights", "next_step": ""}},
        Outcome.INVALID,
        "no weights",
    ),
    "kernel's oom killer": (
        {"result": None, "end": ended_by(signal.SIGKILL), "kernel_oom_kills": 1},
        Outcome.HOST_OOM,
        "out-of-memory killer",
    ),
    "killed": ({"result": None, "end": ended_by(signal.SIGKILL)}, Outcome.LOST, "SIGKILL"),
    "terminated": (
        {"result": None, "end": ended_by(signal.SIGTERM), "kernel_oom_kills": 1},
        Outcome.LOST,
        "SIGTERM",
    ),
    "segmentation fault": (
        {"result": None, "end": ended_by(signal.SIGSEGV), "log_tail": "Fatal Python error\n\n"},
        Outcome.CRASHED,
        "SIGSEGV: Fatal Python error",
    ),
    "unnamed signal": ({"result": None, "end": ended_by(40)}, Outcome.CRASHED, "40"),
    "traceback": (
        {"result": None, "end": {**LEFT, "exit_code": 1}, "log_tail": "Traceback …\nOSError: no config\n"},
        Outcome.CRASHED,
        "OSError: no config",
    ),
    "silent death": ({"result": None, "end": {**LEFT, "exit_code": 3}}, Outcome.CRASHED, "exit code 3"),
}


@pytest.mark.parametrize(("changes", "outcome", "reason"), CASES.values(), ids=CASES.keys())
def test_failures(changes: dict[str, Any], outcome: Outcome, reason: str) -> None:
    ending = classify(**said(**changes))
    assert ending.outcome is outcome
    assert reason in (ending.reason or "")
    assert ending.measurement is None


def test_a_result_is_evidence() -> None:
    ending = classify(**said())
    assert (ending.outcome, ending.reason) == (Outcome.OK, None)
    assert ending.measurement == Measurement(tokens_per_s=100.0)


def test_a_complaint_on_the_log_does_not_spoil_a_result() -> None:
    assert classify(**said(log_tail="a warning")).outcome is Outcome.OK


def test_every_outcome_is_reachable_that_the_job_itself_can_have() -> None:
    decided_elsewhere = {Outcome.OK, Outcome.CANCELLED, Outcome.DISTURBED}
    assert {outcome for _, outcome, _ in CASES.values()} == set(Outcome) - decided_elsewhere


def test_a_training_ends_with_its_scores_row_by_row() -> None:
    scores = {"losses": [1.5, 0.5], "items": [3, 1]}
    ending = classify(**said(result={**RESULT, "heldout": scores}))
    assert ending.heldout == HeldoutScores(losses=(1.5, 0.5), items=(3, 1))
    assert classify(**said(result={**RESULT, "heldout": None})).heldout is None
