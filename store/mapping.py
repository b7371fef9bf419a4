"""Rows to domain types, and domain types to the JSON documents that rows hold.

Knows nothing about sessions or statements.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from ..errors import InputError, StoreError
from ..optimizer.codec import from_json, from_text, to_json
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
from .reading import Found
from .tables import EstimateRow, EventRow, StudyRow, TrialRow

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


def study_of(row: StudyRow | Found) -> Study:
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


def request_of(request: str) -> StudyRequest:
    """The request that a text holds."""
    return _read(StudyRequest, request)


def trial_of(row: TrialRow | Found, study_id: str) -> Trial:
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
        estimate=None if row.told is None else _read(Estimate, row.told),
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


def heldout_of(scores: str) -> HeldoutScores:
    """The scores that a text holds."""
    return _read(HeldoutScores, scores)


def estimate_of(row: EstimateRow | Found) -> tuple[Candidate, Estimate]:
    """A candidate of the shape that a row tells of, and what it tells."""
    return _read(Candidate, row.candidate), _read(Estimate, row.estimate)


def event_of(row: EventRow | Found, study_id: str) -> Event:
    """The event that a row holds, of the study with this ULID."""
    payload = json.loads(row.payload) if isinstance(row.payload, str) else row.payload
    return Event(study_id=study_id, seq=row.seq, kind=row.kind, payload=payload, created_at=row.created_at)


def recommendation_of(snapshot: str) -> Recommendation:
    """The recommendation that a text holds."""
    return _read(Recommendation, snapshot)


def _read(kind: type[T], stored: Any) -> T:
    """What a document holds: text as it was read, data as it is written."""
    try:
        return from_text(kind, stored) if isinstance(stored, str) else from_json(kind, stored)
    except InputError as error:
        raise StoreError(
            f"the database holds a document that this version of rankwise cannot read: {error.message}",
            next_step="use the version that wrote it, or start with a fresh RANKWISE_HOME",
        ) from error
