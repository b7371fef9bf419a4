from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rankwise.api import gpu_history
from rankwise.api.gpu_history import KEPT, GpuHistory
from rankwise.optimizer.domain import StudyRequest
from rankwise.probes.profiles import GpuProfile
from rankwise.store import Store

GPU = GpuProfile(uuid="GPU-1", index=0, name="a GPU", total_bytes=80, used_bytes=3, utilisation_percent=50)


class Clock:
    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_hour_is_kept_and_no_two_looks_at_once(clock: Clock) -> None:
    history = GpuHistory(clock)
    history.keep([GPU])
    history.keep([GPU])  # another page, at the same moment
    assert len(history.samples()) == 1
    for _ in range(3):
        clock.at += KEPT / 2
        history.keep([GPU])
    assert len(history.samples()) == 3
    clock.at += 2 * KEPT
    assert history.samples() == ()
    clock.at += timedelta(seconds=5)
    history.keep([])
    assert history.samples() == ()


def test_gpus_are_looked_at_only_while_there_are_studies_to_run(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    monkeypatch.setattr(gpu_history, "read_gpus", lambda: (looks.append(True), ((GPU,), None))[1])
    history = GpuHistory(clock)
    for expected in (1, 1):  # once at first, to see whether there are any
        assert history._look(store)
        assert len(looks) == expected
        clock.at += timedelta(seconds=5)
    store.create_study(StudyRequest(model="m", dataset="d"))
    assert history._look(store)
    assert len(looks) == 2
    assert [use.used_bytes for sample in history.samples() for use in sample.gpus] == [3, 3]


def test_where_there_is_no_gpu_nobody_looks_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_history, "read_gpus", lambda: ((), "no driver"))
    assert not GpuHistory()._look(store)
