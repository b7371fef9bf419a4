"""Requests that may arrive twice, on every backend of the store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from rankwise.errors import KeyReused
from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store
from rankwise.store.clock import Moment, SystemClock

REQUEST = StudyRequest(model="m", dataset="d")


class Calendar(SystemClock):
    """A clock whose day tests turn."""

    days = 0

    def now(self, session: Session) -> Moment:
        utc = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(days=self.days)
        return replace(super().now(session), utc=utc)


@pytest.fixture
def clock() -> Calendar:
    return Calendar()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Calendar) -> Iterator[Store]:
    place: Any = tmp_path / "rankwise.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgres_url")
    opened = Store.open(place, clock=clock)
    yield opened
    opened.close()


def test_requests_that_race_make_one_study_a_key(store: Store) -> None:
    def ask(turn: int) -> tuple[str, bool]:
        study, is_new = store.create_study_once(
            REQUEST, owner="ann", key=f"key-{turn % 5}", fingerprint=f"{turn % 5}"
        )
        return study.id, is_new

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(60)))
    assert sum(is_new for _, is_new in answers) == 5
    assert len({study_id for study_id, _ in answers}) == len(store.list_studies()) == 5
    assert all(answers[turn][0] == answers[turn % 5][0] for turn in range(60))


def test_a_key_belongs_to_a_caller_and_a_request_and_is_forgotten(store: Store, clock: Calendar) -> None:
    def ask(owner: str, fingerprint: str) -> str:
        return store.create_study_once(REQUEST, owner=owner, key="k", fingerprint=fingerprint)[0].id

    first = ask("ann", "a")
    assert ask("ann", "a") == first
    found = store.find_study_by_key("ann", "k", "a")
    assert found is not None
    assert (found.id, found.owner) == (first, "ann")
    assert ask("bob", "b") != first
    assert store.find_study_by_key("eve", "k", "a") is None
    with pytest.raises(KeyReused, match=first):
        ask("ann", "other")
    with pytest.raises(KeyReused):
        store.find_study_by_key("ann", "k", "other")
    clock.days = 2
    assert ask("ann", "other") != first
