"""A study's history."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ...optimizer.domain import (
    Event,
)
from .parts import Document, Part, StudyLinks


class EventDocument(Part):
    """One line of a study's history."""

    seq: int
    kind: str
    created_at: datetime
    payload: dict[str, Any]


class EventList(Document):
    """A study's history after some event, in order."""

    study_id: str
    events: tuple[EventDocument, ...]
    last_seq: int
    """Pass it as ``after`` to read on."""
    links: StudyLinks

    @classmethod
    def of(cls, study_id: str, events: Sequence[Event], *, after: int) -> EventList:
        """One page of events."""
        return cls(
            study_id=study_id,
            events=tuple(EventDocument.model_validate(event, from_attributes=True) for event in events),
            last_seq=events[-1].seq if events else after,
            links=StudyLinks.of(study_id),
        )
