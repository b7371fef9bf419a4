"""What is still to be told to webhooks: for each study and address, up to which event it was told.

Events are stored with what they tell of, in one transaction; so nothing is lost between a change and its
message, and the order of messages is that of events. Knows nothing of how messages are sent.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select, update
from sqlmodel import col

from .database import Database
from .marks import LIVE
from .tables import StudyRow, WebhookRow

LEASE = timedelta(minutes=2)
"""Within which one server has sent what it took in hand, or another one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A study of which an address is to be told more."""

    key: int
    study_id: str
    url: str
    told: int
    """Number of the last event that it was told."""
    failures: int
    """In a row."""


class Outbox(Database):
    """What the store does for webhooks."""

    def add_webhooks(self, urls: Collection[str], *, study_id: str | None = None) -> None:
        """Tell these addresses of a study, or of every study that is not final, from its first event on."""
        which = col(StudyRow.ulid) == study_id if study_id else col(StudyRow.state).in_(LIVE)
        for url in urls:
            known = select(col(WebhookRow.study_id)).where(col(WebhookRow.url) == url)
            query = select(col(StudyRow.id)).where(which, col(StudyRow.id).not_in(known))
            with self._read() as connection:
                missing = connection.scalars(query).all()
            if not missing:
                continue
            with self._write() as transaction:
                still = transaction.session.scalars(query).all()
                transaction.session.add_all(
                    WebhookRow(study_id=study_key, url=url, due_at=transaction.now) for study_key in still
                )

    def take_due(self, *, limit: int) -> list[Due]:
        """Webhooks that are due, taken in hand: nobody else is given them for :data:`LEASE`."""
        query = (
            select(col(WebhookRow.id))
            .join(StudyRow, col(StudyRow.id) == WebhookRow.study_id)
            .where(col(WebhookRow.given_up).is_(False), col(WebhookRow.told) < col(StudyRow.last_event))
        )
        with self._read() as connection:
            if connection.scalars(query.limit(1)).first() is None:
                return []
        with self._write() as transaction:
            due = query.where(col(WebhookRow.due_at) <= transaction.now)
            keys = transaction.session.scalars(
                due.order_by(col(WebhookRow.due_at))
                .limit(limit)
                .with_for_update(skip_locked=True, of=WebhookRow)
            ).all()
            if not keys:
                return []
            transaction.session.execute(
                update(WebhookRow).where(col(WebhookRow.id).in_(keys)).values(due_at=transaction.now + LEASE)
            )
            found = (
                select(WebhookRow, col(StudyRow.ulid))
                .join(StudyRow, col(StudyRow.id) == WebhookRow.study_id)
                .where(col(WebhookRow.id).in_(keys))
                .order_by(col(WebhookRow.id))
            )
            return [
                Due(key=row.id, study_id=study_id, url=row.url, told=row.told, failures=row.failures)
                for row, study_id in transaction.session.execute(found)
            ]

    def note_told(self, due: Due, seq: int) -> None:
        """The address knows of the events up to this one."""
        with self._write() as transaction:
            transaction.session.execute(
                update(WebhookRow)
                .where(col(WebhookRow.id) == due.key, col(WebhookRow.told) < seq)
                .values(told=seq, failures=0, due_at=transaction.now)
            )

    def note_failed(self, due: Due, *, again_in: timedelta | None) -> None:
        """The address could not be told; try again then, or never."""
        with self._write() as transaction:
            again_at = transaction.now + (again_in or timedelta())
            transaction.session.execute(
                update(WebhookRow)
                .where(col(WebhookRow.id) == due.key)
                .values(failures=due.failures + 1, due_at=again_at, given_up=again_in is None)
            )
