from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import StoreError
from rankwise.optimizer.codec import canonical_json, from_json
from rankwise.optimizer.domain import HeldoutScores, Measurement, StudyState
from rankwise.store.mapping import document, heldout_document, study_of, without_nan
from rankwise.store.tables import StudyRow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_every_document_is_json_without_nan(data: object) -> None:
    canonical_json(without_nan(data))


@given(st.lists(st.floats()))
def test_losses_can_be_read_back_whatever_they_were(losses: list[float]) -> None:
    read = from_json(Measurement, document(Measurement(train_losses=tuple(losses))))
    assert len(read.train_losses) == len(losses)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_not_stored(loss: float) -> None:
    with pytest.raises(ValueError, match="no number"):
        heldout_document(HeldoutScores(losses=(0.5, loss), items=(1, 1)))


def test_an_unreadable_document_is_the_databases_fault() -> None:
    now = datetime.now(UTC)
    row = StudyRow(
        ulid="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        request={"model": "m"},
        state=StudyState.QUEUED,
        created_at=now,
        updated_at=now,
        model="m",
        dataset="d",
    )
    with pytest.raises(StoreError, match="dataset"):
        study_of(row)
