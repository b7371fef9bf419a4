from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from rankwise.api.time_limit import FINISH_S, LEAST_S, STOP_S, bounded_budget, stop_after_s
from rankwise.errors import InputError


@pytest.fixture
def ending_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """As Slurm says it: seconds since the epoch."""
    return lambda left_s: monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + left_s)))


def test_without_a_scheduler_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert (bounded_budget(600.0), stop_after_s()) == (600.0, None)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "UNLIMITED")
    assert (bounded_budget(600.0), stop_after_s()) == (600.0, None)


def test_a_budget_ends_before_the_job(ending_in: Callable[[float], None]) -> None:
    ending_in(3600)
    assert bounded_budget(600.0) == 600.0
    assert bounded_budget(7200.0) == pytest.approx(3600 - FINISH_S, abs=2)
    assert stop_after_s() == pytest.approx(3600 - STOP_S, abs=2)


def test_a_job_that_is_about_to_end_starts_nothing(ending_in: Callable[[float], None]) -> None:
    ending_in(FINISH_S + LEAST_S - 5)
    with pytest.raises(InputError, match="too short for a study"):
        bounded_budget(600.0)
    ending_in(-10)
    with pytest.raises(InputError, match="ends in 0 s"):
        bounded_budget(600.0)
    assert stop_after_s() == 1.0
