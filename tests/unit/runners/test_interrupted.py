"""Of studies that share a database, those that a live supervisor elsewhere runs are not interrupted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.runners.interrupted import interrupted
from rankwise.runners.place import place_of
from rankwise.store import Store, Worker


@pytest.mark.parametrize(
    ("is_shared", "is_ours", "lease_s", "expected"),
    [
        (False, True, 60.0, True),
        (True, True, 60.0, True),
        (True, False, 60.0, False),
        (True, False, 0.0, True),
    ],
    ids=[
        "a file of our own",
        "our supervisor died",
        "another one runs it",
        "another one gave no sign of life",
    ],
)
def test_who_works_on_a_study(
    home: Home, is_shared: bool, is_ours: bool, lease_s: float, expected: bool
) -> None:
    # Where studies are kept in truth plays no part: what is told of the home decides.
    told = replace(home, database_url="postgresql://host/studies" if is_shared else None)
    place = place_of(told) if is_ours else "other:/home"
    with closing(Store.open(home.database)) as store:
        study_id = store.create_study(StudyRequest(model="models/tiny", dataset="reviews.csv")).id
        untouched = store.create_study(StudyRequest(model="models/tiny", dataset="reviews.csv"))
        claim = store.claim_study(Worker(name="host:1", place=place), only=study_id, lease_s=lease_s)
        assert claim is not None
        studies = [store.get_study(study_id), untouched]
        assert interrupted(told, store, studies) == ({study_id} if expected else set())
