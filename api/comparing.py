"""Two stored studies beside each other, found and put into a document. Knows nothing of who asks."""

from __future__ import annotations

from ..errors import NotFound
from ..optimizer.differences import Difference, are_comparable, difference
from ..optimizer.domain import Recommendation, Study, StudyState
from ..store import Store

PAGE = 50


def compare_studies(store: Store, then_id: str, now_id: str) -> Difference:
    """What changed from the first study to the second.

    Raises:
        NotFound: there is no such study.
        InputError: they are not of the same model and rows, or share no shape that was measured.
    """
    then, now = store.get_study(then_id), store.get_study(now_id)
    return difference(
        then,
        store.list_trials(then_id),
        _recommendation(store, then),
        now,
        store.list_trials(now_id),
        _recommendation(store, now),
    )


def find_earlier(store: Store, study_id: str) -> str:
    """The latest earlier study of the same model and rows in another environment.

    Raises:
        NotFound: there is no such study, or none to compare it with.
    """
    now = store.get_study(study_id)
    before = study_id
    while studies := store.list_studies(limit=PAGE, before=before):
        for study in studies:
            if are_comparable(study, now):
                return study.id
        before = studies[-1].id
    raise NotFound(
        f"no study before {study_id} is of the same model and rows in another environment",
        next_step=f"name the one to compare with: rankwise compare OLDER {study_id}",
    )


def _recommendation(store: Store, study: Study) -> Recommendation | None:
    return store.get_recommendation(study.id) if study.state is StudyState.SUCCEEDED else None
