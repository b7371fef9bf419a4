"""A study's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ...optimizer.domain import Event, StudyState, TrialState
from ...store.marks import Mark
from .parts import Document, Part, StudyLinks
from .studies import Progress


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


class StudyChange(Document):
    """What a list of studies shows of one that changed."""

    id: str
    state: StudyState
    reason: str | None
    cancel_requested: bool
    updated_at: datetime
    last_seq: int
    """The number of its newest event."""
    progress: Progress
    links: StudyLinks

    @classmethod
    def of(cls, mark: Mark, counts: Mapping[TrialState, int]) -> StudyChange:
        """A study with the numbers of its trials by state."""
        return cls(
            id=mark.study_id,
            state=mark.state,
            reason=mark.reason,
            cancel_requested=mark.cancel_requested,
            updated_at=mark.updated_at,
            last_seq=mark.last_event,
            progress=Progress.of(counts),
            links=StudyLinks.of(mark.study_id),
        )
