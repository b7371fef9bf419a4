"""How long a scheduler still lets this process run. Knows Slurm's variable only, and nothing of studies."""

from __future__ import annotations

import os
import time

from ..errors import InputError
from .units import format_seconds

VARIABLE = "SLURM_JOB_END_TIME"
FINISH_S = 180.0
"""For what a budget does not count: starting, reading the data, writing files."""
LEAST_S = 60.0
"""Shorter studies find nothing."""
STOP_S = 60.0
"""Before the end the work is stopped in any case, to hand the study back and save it."""


def seconds_left() -> float | None:
    """Until the scheduler ends the job; None where none said when."""
    text = os.environ.get(VARIABLE, "")
    return float(text) - time.time() if text.isdecimal() else None


def bounded_budget(budget_s: float) -> float:
    """No more than the job has time for.

    Raises:
        InputError: it has none.
    """
    left_s = seconds_left()
    if left_s is None:
        return budget_s
    if left_s - FINISH_S < LEAST_S:
        raise InputError(
            f"the job ends in {max(0.0, left_s):.0f} s: that is too short for a study",
            next_step=f"give it {format_seconds(FINISH_S + LEAST_S)} at least (sbatch --time)",
        )
    return min(budget_s, left_s - FINISH_S)


def stop_after_s() -> float | None:
    """When to stop by oneself, before the scheduler does; None where it never does."""
    left_s = seconds_left()
    return None if left_s is None else max(1.0, left_s - STOP_S)
