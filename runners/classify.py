"""From what a job said and how it ended to an outcome with a reason. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..optimizer.codec import from_json
from ..optimizer.domain import HeldoutScores, Measurement, Outcome
from .messages import last_line


@dataclass(frozen=True, slots=True)
class Ending:
    """How one attempt at a trial ended."""

    outcome: Outcome
    reason: str | None = None
    measurement: Measurement | None = None
    heldout: HeldoutScores | None = None
    """Of a training, row by row."""


def classify(
    *,
    result: Mapping[str, Any] | None,
    failure: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
    end: Mapping[str, Any] | None,
    kernel_oom_kills: int,
    log_tail: str,
) -> Ending:
    """Decide the outcome; the first rule that applies wins.

    Args:
        result, failure, error, end: the job's last message of each type; ``end`` is the guard's ``exit``.
        kernel_oom_kills: processes that the kernel's OOM killer took while the attempt ran.
        log_tail: end of the job's log, for the reason of a crash.
    """
    if end is None:
        return Ending(Outcome.LOST, "the processes running the trial were killed")
    cause = end["cause"]
    if cause == "timeout":
        return Ending(Outcome.TIMEOUT, f"ended after {end['wall_s']:.0f} s, its time limit")
    if cause == "memory-limit":
        return Ending(Outcome.OOM, "its host memory grew over the study's memory limit")
    if cause == "host-memory":
        return Ending(Outcome.HOST_OOM, "the host ran short of memory while it ran")
    if cause == "disk-limit":
        return Ending(Outcome.CRASHED, "its folder took more of the disk than a trial may")
    if cause == "disk-space":
        return Ending(Outcome.LOST, "the disk below RANKWISE_HOME ran short of space while it ran")
    if cause == "cancelled":
        return Ending(Outcome.LOST, "the warm server went away while the trial ran")
    if failure is not None and "signal" in failure:
        return classify_signal(failure["signal"], kernel_oom_kills, log_tail, who=f"rank {failure['rank']}")
    if failure is not None:
        return Ending(Outcome(failure["outcome"]), failure["reason"])
    if error is not None:
        return Ending(Outcome.INVALID, error["message"])
    if end["signal"] is not None:
        return classify_signal(end["signal"], kernel_oom_kills, log_tail)
    if result is None:
        return Ending(Outcome.CRASHED, last_line(log_tail) or f"exit code {end['exit_code']}, no output")
    scores = result.get("heldout")
    return Ending(
        Outcome.OK,
        measurement=from_json(Measurement, result["measurement"]),
        heldout=None if scores is None else from_json(HeldoutScores, scores),
    )


def classify_signal(number: int, kernel_oom_kills: int, log_tail: str, who: str = "it") -> Ending:
    """A trial does not send itself SIGKILL or SIGTERM: somebody else did. Other signals are its own fault."""
    names: dict[int, str] = {known.value: known.name for known in signal.Signals}
    name = names.get(number, f"signal {number}")  # most real-time signals have no name
    if number == signal.SIGKILL and kernel_oom_kills > 0:
        return Ending(Outcome.HOST_OOM, f"the kernel's out-of-memory killer ended {who}")
    if number in (signal.SIGKILL, signal.SIGTERM):
        return Ending(Outcome.LOST, f"another process ended {who} with {name}")
    last = last_line(log_tail)
    subject = "" if who == "it" else f"{who} was "
    return Ending(Outcome.CRASHED, f"{subject}ended by {name}" + (f": {last}" if last else ""))
