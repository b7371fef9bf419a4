"""Which studies had begun and are worked on by nobody."""

from __future__ import annotations

from collections.abc import Iterable

from ..home import Home
from ..optimizer.domain import Study
from ..store import Store
from .lock import LockHolder, lock_holder
from .place import place_of


def interrupted(home: Home, store: Store, studies: Iterable[Study]) -> set[str]:
    """The ids of those that are.

    A supervisor of this home that died is known by its lock, at once; one elsewhere that shares the database
    by the end of its lease.
    """
    holder = lock_holder(home)
    # One that still waits for its first run has not been touched since it was asked for.
    begun = (study for study in studies if study.updated_at > study.created_at and not study.state.is_final)
    return {
        study.id
        for study in begun
        if not _is_held_here(holder, study) and not _is_held_elsewhere(home, store, study)
    }


def _is_held_here(holder: LockHolder | None, study: Study) -> bool:
    return holder is not None and holder.study_id in (None, study.id)


def _is_held_elsewhere(home: Home, store: Store, study: Study) -> bool:
    if home.database_url is None:
        return False
    worker = store.holder_of(study.id)
    return worker is not None and worker.place != place_of(home)
