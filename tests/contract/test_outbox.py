"""What is still to be told to webhooks, on every backend of the store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store

URL = "https://receiver.example/hook"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    place: Any = tmp_path / "rankwise.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgres_url")
    opened = Store.open(place)
    yield opened
    opened.close()


def test_what_is_taken_in_hand_is_nobody_elses_until_it_was_told(store: Store) -> None:
    study = store.create_study(StudyRequest(model="m", dataset="d"), webhooks=[URL, URL])
    [due] = store.take_due(limit=5)
    assert (due.study_id, due.url, due.told, due.failures) == (study.id, URL, 0, 0)
    assert store.take_due(limit=5) == []
    store.note_told(due, 1)
    assert store.take_due(limit=5) == []  # nothing happened since
    store.request_cancel(study.id)
    [again] = store.take_due(limit=5)
    assert again.told == 1
    store.note_failed(again, again_in=timedelta(0))
    [retried] = store.take_due(limit=5)
    assert (retried.told, retried.failures) == (1, 1)
    store.note_failed(retried, again_in=timedelta(hours=1))
    assert store.take_due(limit=5) == []
    store.note_failed(retried, again_in=None)
    assert store.take_due(limit=5) == []


def test_an_address_for_all_is_added_to_what_lives_once(store: Store) -> None:
    ended = store.create_study(StudyRequest(model="m", dataset="d"))
    store.request_cancel(ended.id)
    live = store.create_study(StudyRequest(model="m", dataset="d"))
    for _ in range(2):
        store.add_webhooks([URL])
    assert [due.study_id for due in store.take_due(limit=5)] == [live.id]
