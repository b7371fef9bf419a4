"""Pages of studies and trials, and marks, on every backend of the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from rankwise.errors import NotFound
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Measurement,
    Method,
    Outcome,
    Recipe,
    Rung,
    StudyRequest,
    StudyState,
    TrialPlan,
    TrialState,
)
from rankwise.store import Store, StudyClaim, Worker
from rankwise.store.clock import Moment, SystemClock
from rankwise.store.listing import StudyFilter, StudySort, TrialFilter, TrialSort

WORKER = Worker(name="w", place="here")
BEGIN = datetime(2026, 5, 1, tzinfo=UTC)


class Calendar(SystemClock):
    """A day passes with every look at it."""

    def __init__(self) -> None:
        self.days = 0

    def now(self, session: Session) -> Moment:
        self.days += 1
        return replace(super().now(session), utc=BEGIN + timedelta(days=self.days))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    place: Any = tmp_path / "rankwise.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgres_url")
    opened = Store.open(place, clock=Calendar())
    yield opened
    opened.close()


@pytest.fixture
def studies(store: Store) -> list[str]:
    """Seven: the second runs, the fourth was cancelled."""
    named = [("models/llama_8b", "a.csv"), ("models/llama-70b", "b.csv"), ("org/BERT", "a.csv")]
    ids = [
        store.create_study(StudyRequest(model=named[index % 3][0], dataset=named[index % 3][1])).id
        for index in range(7)
    ]
    store.claim_study(WORKER, only=ids[1])
    store.request_cancel(ids[3])
    return ids


def read(store: Store, wanted: StudyFilter | None = None, *, limit: int = 100, **options: Any) -> list[str]:
    """All pages, one behind the other."""
    ids: list[str] = []
    after = None
    while True:
        page = store.page_studies(wanted or StudyFilter(), limit=limit, after=after, **options)
        assert len(page.marks) <= limit
        ids += [mark.study_id for mark in page.marks]
        after = page.next
        if after is None:
            return ids


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_of_studies_have_each_once_in_every_order(store: Store, studies: list[str], limit: int) -> None:
    changed = [studies[index] for index in (0, 2, 4, 5, 6, 1, 3)]
    assert read(store, limit=limit) == studies[::-1]
    assert read(store, limit=limit, descending=False) == studies
    assert read(store, limit=limit, sort=StudySort.UPDATED) == changed[::-1]
    assert read(store, limit=limit, sort=StudySort.UPDATED, descending=False) == changed
    by_state = read(store, limit=limit, sort=StudySort.STATE, descending=False)
    assert by_state[0] == studies[3]
    assert by_state[1:] == [studies[index] for index in (0, 2, 4, 5, 6, 1)]


def test_studies_are_found_by_what_they_are(store: Store, studies: list[str]) -> None:
    def found(**wanted: Any) -> list[int]:
        return [studies.index(each) for each in read(store, StudyFilter(**wanted), descending=False)]

    assert found(states=(StudyState.RUNNING,)) == [1]
    assert found(states=(StudyState.RUNNING, StudyState.CANCELLED)) == [1, 3]
    assert found(model="org/BERT") == [2, 5]
    assert found(dataset="a.csv", states=(StudyState.QUEUED,)) == [0, 2, 5, 6]
    assert found(text="LLAMA") == [0, 1, 3, 4, 6]
    assert found(text="llama_") == [0, 3, 6]  # no wildcard
    assert found(text="%") == []
    assert found(text=studies[4].lower()) == [4]
    assert found(created_from=BEGIN + timedelta(days=3)) == [2, 3, 4, 5, 6]
    assert found(created_from=BEGIN + timedelta(days=3), created_before=BEGIN + timedelta(days=5)) == [2, 3]


def test_what_is_added_meanwhile_moves_nothing(store: Store, studies: list[str]) -> None:
    page = store.page_studies(StudyFilter(), limit=3)
    store.create_study(StudyRequest(model="m", dataset="d"))
    store.request_cancel(studies[5])
    rest = store.page_studies(StudyFilter(), limit=10, after=page.next)
    assert [mark.study_id for mark in (*page.marks, *rest.marks)] == studies[::-1]


def test_studies_are_read_in_the_order_asked_for(store: Store, studies: list[str]) -> None:
    asked = [studies[4], studies[0], "01ARZ3NDEKTSV4RRFFQ69G5FAV", studies[2]]
    assert [study.id for study in store.get_studies(asked)] == [studies[4], studies[0], studies[2]]


def test_a_mark_changes_with_its_study(store: Store, studies: list[str]) -> None:
    before = store.get_mark(studies[0])
    claim = store.claim_study(WORKER, only=studies[0])
    assert claim is not None
    store.append_event(claim, "note", {})
    after = store.get_mark(studies[0])
    assert (before.last_event, after.last_event, after.state) == (1, 3, StudyState.RUNNING)
    store.renew_study(claim)  # changes nothing that anybody could want to see
    assert store.get_mark(studies[0]) == after
    with pytest.raises(NotFound):
        store.get_mark("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert {mark.study_id for mark in store.list_marks()} == {*studies} - {studies[3]}
    assert [mark.study_id for mark in store.list_marks(also=[studies[3]])][-1] == studies[0]
    assert {mark.study_id for mark in store.list_marks(newer_than=studies[2])} == {*studies}
    latest = store.list_marks_since(after.updated_at, limit=5)
    assert [mark.study_id for mark in latest] == [studies[0]]
    assert store.newest_study() == studies[6]


FIGURES = [(100.0, 8, None), (300.0, 4, 0.5), None, (200.0, 2**40, 0.25), (300.0, 6, 0.75), None]
"""Speed, memory and loss of trials; None of those that did not fit."""


@pytest.fixture
def study_id(store: Store) -> str:
    """A running study with a trial for each of the figures, and one that is queued."""
    made = store.create_study(StudyRequest(model="m", dataset="d")).id
    run = store.claim_study(WORKER, only=made)
    assert run is not None
    for number, figures in enumerate([*FIGURES, "queued"], start=1):
        candidate = Candidate(
            adapter=Adapter(method=Method.LORA, rank=number, alpha=16, targets=("q",)),
            level=Level(),
            recipe=Recipe(max_length=64),
            micro_batch=1,
            learning_rate=1e-4,
        )
        rung = Rung.TRAIN if isinstance(figures, tuple) and figures[2] else Rung.PROBE
        trial = store.plan_trial(run, TrialPlan(candidate=candidate, rung=rung))
        if figures == "queued":
            continue
        claim = store.claim_trial(run, trial.id, devices=["cpu"], worker="w")
        assert claim is not None
        if figures is None:
            store.finish_attempt(claim, outcome=Outcome.OOM)
            continue
        assert isinstance(figures, tuple)
        speed, memory, loss = figures
        measured = Measurement(samples_per_s=speed, peak_process_bytes=memory, heldout_loss=loss)
        store.finish_attempt(claim, outcome=Outcome.OK, measurement=measured)
    return made


ORDERS = [
    (TrialSort.NUMBER, False, [1, 2, 3, 4, 5, 6, 7]),
    (TrialSort.NUMBER, True, [7, 6, 5, 4, 3, 2, 1]),
    (TrialSort.SPEED, True, [2, 5, 4, 1, 3, 6, 7]),
    (TrialSort.SPEED, False, [1, 4, 2, 5, 3, 6, 7]),
    (TrialSort.MEMORY, False, [2, 5, 1, 4, 3, 6, 7]),
    (TrialSort.LOSS, False, [4, 2, 5, 1, 3, 6, 7]),
]


def test_trials_are_sorted_by_what_was_measured_of_them(store: Store, study_id: str) -> None:
    for (sort, descending, numbers), limit in itertools.product(ORDERS, (1, 2, 3, 10)):
        found: list[int] = []
        after = None
        is_begun = False
        while after is not None or not is_begun:
            page = store.page_trials(
                study_id, TrialFilter(), limit=limit, sort=sort, descending=descending, after=after
            )
            found += [trial.number for trial in page.trials]
            after, is_begun = page.next, True
        assert found == numbers, (sort, descending, limit)


def test_trials_are_found_by_what_became_of_them(store: Store, study_id: str) -> None:
    def found(**wanted: Any) -> list[int]:
        page = store.page_trials(study_id, TrialFilter(**wanted), limit=10, sort=TrialSort.MEMORY)
        return [trial.number for trial in page.trials]

    assert found(rungs=(Rung.TRAIN,)) == [2, 5, 4]
    assert found(outcomes=(Outcome.OOM,)) == [3, 6]
    assert found(states=(TrialState.QUEUED,)) == [7]
    assert found(rungs=(Rung.PROBE,), outcomes=(Outcome.OK, Outcome.OOM)) == [1, 3, 6]


def test_a_measurement_that_is_no_number_sorts_as_none(store: Store, study_id: str) -> None:
    [queued] = store.page_trials(study_id, TrialFilter(states=(TrialState.QUEUED,)), limit=1).trials
    run = StudyClaim(study=store.get_study(study_id), fence=1, moved=False)
    claim = store.claim_trial(run, queued.id, devices=["cpu"], worker="w")
    assert claim is not None
    store.finish_attempt(
        claim, outcome=Outcome.OK, measurement=Measurement(heldout_loss=float("nan"), samples_per_s=1.0)
    )
    page = store.page_trials(study_id, TrialFilter(), limit=10, sort=TrialSort.LOSS)
    assert [trial.number for trial in page.trials][-1] == 7
