"""The numbered events of a study, appended and read. What the store's own say stands in ``events.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam
from sqlmodel import col

from ..optimizer.domain import Event
from .claims import StudyClaim
from .database import Database
from .mapping import event_of
from .reading import EVENTS, find_study
from .tables import EventRow

_AFTER = (
    EVENTS.where(col(EventRow.study_id) == bindparam("key"), col(EventRow.seq) > bindparam("seq"))
    .order_by(col(EventRow.seq))
    .limit(bindparam("count"))
)


class History(Database):
    """What the store does with events."""

    def append_event(self, claim: StudyClaim, kind: str, payload: Mapping[str, Any]) -> Event:
        """Add a line to the history of a study that is run.

        Raises:
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            row = transaction.append_event(transaction.lock_claimed(claim), kind, payload)
            return event_of(row, claim.id)

    def events_after(self, study_id: str, seq: int, *, limit: int = 1000) -> list[Event]:
        """Events with a greater number than ``seq`` (0 for all), in order, ``limit`` at most.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            rows = connection.execute(_AFTER, {"key": study.id, "seq": seq, "count": limit})
            return [event_of(row, study_id) for row in rows]
