"""Rows to domain types, and domain types to the JSON documents that rows hold.

Knows nothing about sessions or statements.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from ..errors import InputError, StoreError
from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import (
    Candidate,
    Estimate,
    Event,
    HeldoutScores,
    Measurement,
    Recommendation,
    Study,
    StudyFacts,
    StudyRequest,
    Trial,
    TrialPlan,
)
from .tables import EstimateRow, EventRow, HeldoutRow, RecommendationRow, StudyRow, TrialRow

T = TypeVar("T")


def document(value: Any) -> Any:
    """A frozen type as the JSON data to store: numbers that are none (NaN, infinity) become null.

    JSON has no word for them; pydantic's Python form keeps them.
    """
    return without_nan(to_json(value))


def without_nan(data: Any) -> Any:
    """JSON data with null in place of NaN and infinity."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return data


def study_of(row: StudyRow) -> Study:
    """The study that a row holds."""
    return Study(
        id=row.ulid,
        request=_read(StudyRequest, row.request),
        state=row.state,
        created_at=row.created_at,
        updated_at=row.updated_at,
        owner=row.owner,
        cancel_requested=row.cancel_requested,
        facts=None if row.facts is None else _read(StudyFacts, row.facts),
        reason=row.reason,
    )


def trial_of(row: TrialRow, study_id: str) -> Trial:
    """The trial that a row holds, of the study with this ULID."""
    return Trial(
        id=row.ulid,
        study_id=study_id,
        number=row.number,
        plan=_read(TrialPlan, row.plan),
        state=row.state,
        attempts=row.attempts,
        outcome=row.outcome,
        reason=row.reason,
        measurement=None if row.measurement is None else _read(Measurement, row.measurement),
        log_tail=row.log_tail,
        started_at=row.started_at,
        finished_at=row.finished_at,
        wall_s=row.wall_s,
        reused_from=row.reused_from,
        estimate=None if row.estimate is None else estimate_of(row.estimate)[1],
    )


def measured(measurement: Measurement | None) -> dict[str, Any]:
    """The columns of a trial that hold a measurement: itself, and what trials are sorted by."""
    if measurement is None:
        return {"measurement": None, "speed": None, "memory_bytes": None, "loss": None}
    return {
        "measurement": document(measurement),
        "speed": without_nan(measurement.speed),
        "memory_bytes": measurement.memory_bytes,
        "loss": without_nan(measurement.judged_loss),
    }


def heldout_document(scores: HeldoutScores) -> dict[str, Any]:
    """Scores as the JSON data to store.

    Raises:
        ValueError: a loss is no number; nothing can be compared with it, so nothing of them is stored.
    """
    if not all(map(math.isfinite, scores.losses)):
        raise ValueError("a held-out row has a loss that is no number")
    data: dict[str, Any] = to_json(scores)
    return data


def heldout_of(row: HeldoutRow) -> HeldoutScores:
    """The scores that a row holds."""
    return _read(HeldoutScores, row.scores)


def estimate_of(row: EstimateRow) -> tuple[Candidate, Estimate]:
    """A candidate of the shape that a row tells of, and what it tells."""
    return _read(Candidate, row.candidate), _read(Estimate, row.estimate)


def event_of(row: EventRow, study_id: str) -> Event:
    """The event that a row holds, of the study with this ULID."""
    return Event(
        study_id=study_id, seq=row.seq, kind=row.kind, payload=row.payload, created_at=row.created_at
    )


def recommendation_of(row: RecommendationRow) -> Recommendation:
    """The recommendation that a row holds."""
    return _read(Recommendation, row.snapshot)


def _read(kind: type[T], data: Any) -> T:
    try:
        return from_json(kind, data)
    except InputError as error:
        raise StoreError(
            f"the database holds a document that this version of rankwise cannot read: {error.message}",
            next_step="use the version that wrote it, or start with a fresh RANKWISE_HOME",
        ) from error
