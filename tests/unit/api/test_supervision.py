from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from rankwise.api import supervision as module
from rankwise.api.supervision import Supervision, SupervisionState
from rankwise.errors import RunnerError
from rankwise.home import Home
from rankwise.runners.lock import take_lock


class FakeSupervisor:
    """Stands in for the process: the watcher's own decisions are what is tested here."""

    started: list[FakeSupervisor]
    fails_to_start = False

    def __init__(self) -> None:
        self.alive = True
        self.stopped = False

    @classmethod
    def start(cls, home: Home, *, study_id: str | None, allow_remote_code: bool) -> FakeSupervisor:  # noqa: ARG003
        process = cls()
        cls.started.append(process)
        if cls.fails_to_start:
            raise RunnerError("no process")
        return process

    def is_alive(self) -> bool:
        return self.alive

    def stop(self, grace_s: float = 15.0) -> None:
        self.alive, self.stopped = False, True


@pytest.fixture
def supervision(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervision]:
    monkeypatch.setattr(FakeSupervisor, "started", [], raising=False)
    monkeypatch.setattr(FakeSupervisor, "fails_to_start", False)
    monkeypatch.setattr(module, "SupervisorProcess", FakeSupervisor)
    monkeypatch.setattr(module, "POLL_S", 0.005)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.02)
    watcher = Supervision(home)
    yield watcher
    watcher.stop()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


def test_a_supervisor_runs_until_the_server_stops(supervision: Supervision) -> None:
    supervision.start()
    assert eventually(lambda: supervision.state is SupervisionState.RUNNING)
    supervision.stop()
    assert [process.stopped for process in FakeSupervisor.started] == [True]
    assert supervision.state is SupervisionState.OFF


def test_a_supervisor_that_dies_is_replaced_with_growing_pauses(supervision: Supervision) -> None:
    supervision.start()
    starts_s: list[float] = []
    for count in range(1, 5):
        assert eventually(lambda count=count: len(FakeSupervisor.started) == count)  # type: ignore[misc]
        starts_s.append(time.monotonic())
        FakeSupervisor.started[-1].alive = False
    pauses_s = [later - earlier for earlier, later in pairwise(starts_s)]
    assert pauses_s[0] > 0.02
    assert pauses_s[2] > 0.08


def test_a_supervisor_that_cannot_be_started_is_tried_again(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSupervisor, "fails_to_start", True)
    supervision.start()
    assert eventually(lambda: len(FakeSupervisor.started) >= 2)
    assert supervision.state is not SupervisionState.RUNNING


def test_another_process_that_supervises_is_waited_for(supervision: Supervision, home: Home) -> None:
    lock = take_lock(home, study_id="some study")
    assert lock is not None
    supervision.start()
    assert eventually(lambda: supervision.state is SupervisionState.ELSEWHERE)
    time.sleep(0.05)
    assert FakeSupervisor.started == []
    lock.close()
    assert eventually(lambda: supervision.state is SupervisionState.RUNNING)
