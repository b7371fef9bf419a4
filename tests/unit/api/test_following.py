from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rankwise import errors
from rankwise.api import following
from rankwise.api.failure import failure_of
from rankwise.api.following import MAX_FRUITLESS_STARTS, find_unfinished, follow
from rankwise.errors import DatasetError, NothingFits, RankwiseError, RunnerError
from rankwise.home import Home
from rankwise.optimizer.domain import Estimate, Outcome, Rung, Study, StudyRequest, StudyState, Trial
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.runners.lock import LockHolder
from rankwise.store import Store, Worker


class FakeSupervisor:
    """Stands for the process: every start plays the next part of a script, then the process has ended."""

    def __init__(self, parts: Sequence[object]) -> None:
        self.parts = list(parts)
        self.starts = 0
        self.stops = 0

    def start(self, _home: Home, *, study_id: str | None, allow_remote_code: bool) -> FakeSupervisor:
        part = self.parts[min(self.starts, len(self.parts) - 1)]
        self.starts += 1
        if callable(part):
            part()
        return self

    def is_alive(self) -> bool:
        return False

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture(autouse=True)
def _poll_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.001)


def supervise(monkeypatch: pytest.MonkeyPatch, *parts: object) -> FakeSupervisor:
    fake = FakeSupervisor(parts)
    monkeypatch.setattr(following, "SupervisorProcess", fake)
    return fake


def test_a_supervisor_is_started_and_its_study_followed_to_the_end(store, script, home, monkeypatch):
    supervisor = supervise(monkeypatch, script.play)
    seen: list[tuple[Study, Sequence[Trial]]] = []

    study = follow(store, script.id, home, lambda study, trials: seen.append((study, trials)))

    assert study.state is StudyState.SUCCEEDED
    assert (supervisor.starts, supervisor.stops) == (1, 1)
    assert seen[0][0].state is StudyState.QUEUED
    assert seen[-1][0].state is StudyState.SUCCEEDED
    assert [trial.number for trial in seen[-1][1]] == [1, 2, 3]


def test_it_is_said_why_a_trial_is_tried_again(store, script, home, candidates, probed, monkeypatch):
    def play() -> None:
        script.begin()
        for outcome, reason in ((Outcome.DISTURBED, "a neighbour woke up."), (Outcome.LOST, "it vanished")):
            store.finish_attempt(script.start(candidates[0], Rung.PROBE), outcome=outcome, reason=reason)
        script.recommend(script.run(candidates[0], Rung.PROBE, probed))

    supervise(monkeypatch, play)
    said: list[str] = []

    follow(store, script.id, home, on_notice=said.append)

    assert said == [
        "trial 1, attempt 1, disturbed: a neighbour woke up.",
        "trial 1, attempt 2, lost: it vanished",
    ]


def test_what_is_ruled_out_is_said(store, script, home, candidates, monkeypatch):
    def rule_out() -> None:
        script.begin()
        hopeless = Estimate(device="a CPU", fits=Fits.NO, reason="it needs too much")
        store.save_estimates(script.claim, {candidates[0]: hopeless})
        store.finish_study(script.claim, StudyState.FAILED, "NothingFits: nothing fits")

    supervise(monkeypatch, rule_out)
    said: list[str] = []
    follow(store, script.id, home, on_notice=said.append)
    assert said == [f"ruled out: {candidates[0].describe()}: it needs too much"]


def test_a_study_that_has_ended_needs_no_supervisor(store, script, home, monkeypatch):
    supervisor = supervise(monkeypatch, None)
    script.play()

    assert follow(store, script.id, home).state is StudyState.SUCCEEDED
    assert supervisor.starts == 0


def test_a_supervisor_that_makes_progress_is_started_again_without_limit(store, script, home, monkeypatch):
    candidates = [script.candidate(learning_rate=rate) for rate in (1e-4, 2e-4, 3e-4, 4e-4, 5e-4)]
    parts = [lambda c=candidate: script.plan(c, Rung.PROBE) for candidate in candidates]
    supervisor = supervise(monkeypatch, script.begin, *parts, lambda: script.fail("RunnerError: enough"))

    assert follow(store, script.id, home).state is StudyState.FAILED
    assert supervisor.starts == len(candidates) + 2 > MAX_FRUITLESS_STARTS


def test_a_supervisor_that_ends_without_progress_is_given_up(store, script, home, monkeypatch):
    supervisor = supervise(monkeypatch, None)

    with pytest.raises(RunnerError, match="3 times in a row") as caught:
        follow(store, script.id, home)

    assert supervisor.starts == MAX_FRUITLESS_STARTS
    assert str(home.logs) in caught.value.next_step


def test_another_study_is_waited_for_and_named_once(store, script, home, monkeypatch):
    supervisor = supervise(monkeypatch, script.play)
    holder = LockHolder(pid=4321, mode="study", study_id="OTHER", started_at="")
    holders = iter([holder, holder, holder, None])
    monkeypatch.setattr(following, "lock_holder", lambda _home: next(holders, None))
    notices: list[str] = []

    follow(store, script.id, home, on_notice=notices.append)

    assert notices == ["waiting for process 4321, which runs study OTHER"]
    assert supervisor.starts == 1


@pytest.mark.parametrize("mode", ["serve", "study"])
def test_a_supervisor_that_has_the_study_in_hand_is_followed_silently(store, script, home, monkeypatch, mode):
    supervisor = supervise(monkeypatch, None)
    polls = 0

    def hold(_home: Home) -> LockHolder:
        nonlocal polls
        polls += 1
        if polls == 3:
            script.play()
        study_id = script.id if mode == "study" else None
        return LockHolder(pid=4321, mode=mode, study_id=study_id, started_at="")

    monkeypatch.setattr(following, "lock_holder", hold)
    notices: list[str] = []

    assert follow(store, script.id, home, on_notice=notices.append).state is StudyState.SUCCEEDED
    assert (notices, supervisor.starts) == ([], 0)


def test_an_interrupt_stops_our_supervisor(store, script, home, monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    supervisor = supervise(monkeypatch, None)
    monkeypatch.setattr(supervisor, "is_alive", interrupt)

    with pytest.raises(KeyboardInterrupt):
        follow(store, script.id, home)

    assert supervisor.stops == 1


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("NothingFits: too large — take a smaller model", NothingFits), ("DatasetError: no rows", DatasetError)],
)
def test_the_error_that_failed_a_study_comes_back(script, reason: str, kind: type[RankwiseError]):
    script.begin()
    error = failure_of(script.fail(reason))

    assert type(error) is kind
    assert f"{kind.__name__}: {error}" == reason


@pytest.mark.parametrize("reason", ["the disk is full", "Path: no error of ours", f"{errors.__name__}: no"])
def test_a_reason_in_other_words_is_kept_whole(script, reason: str):
    script.begin()
    error = failure_of(script.fail(reason))

    assert type(error) is RunnerError
    assert error.message == reason


def test_a_cancelled_study_is_no_success(store, script):
    store.request_cancel(script.id)

    error = failure_of(store.get_study(script.id))

    assert isinstance(error, RunnerError)
    assert "cancelled" in error.message


def test_a_study_with_a_recommendation_has_not_failed(script):
    assert failure_of(script.play()) is None


def test_the_newest_unfinished_study_of_the_same_request_is_found(store: Store) -> None:
    asked = StudyRequest(model="m", dataset="d", budget_s=600.0)
    assert find_unfinished(store, asked) is None
    first, second = (store.create_study(replace(asked, budget_s=budget_s)).id for budget_s in (60.0, 90.0))
    store.create_study(replace(asked, seed=1))
    assert find_unfinished(store, asked) == second
    store.request_cancel(second)
    assert find_unfinished(store, asked) == first
    claim = store.claim_study(Worker(name="w", place="here"), only=first)
    assert claim is not None
    assert find_unfinished(store, asked) == first
    store.finish_study(claim, StudyState.FAILED, "RunnerError: gone")
    assert find_unfinished(store, asked) is None
