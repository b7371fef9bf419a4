"""What nobody looks after any more: studies and attempts whose worker is dead, or gave no sign of life.

Knows nothing about when to look for them.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlmodel import col

from ..optimizer.domain import Outcome, StudyState
from . import events
from .claims import Reaped
from .database import Database
from .events import EventKind
from .tables import AttemptRow, StudyRow, TrialRow
from .transaction import Transaction, is_over


class Reaping(Database):
    """What the store does with abandoned work."""

    def reap(self, *, dead_place: str | None = None) -> Reaped:
        """End abandoned attempts as lost, and put abandoned studies back into the queue.

        Abandoned is what a lease is over of, what a restart of the machine ended, and what the last worker of
        ``dead_place`` had in hand.

        Args:
            dead_place: whose worker is known to be dead. For its successor, before it claims anything.
        """
        running = select(col(StudyRow.ulid)).where(col(StudyRow.state) == StudyState.RUNNING)
        with self._read() as connection:
            found = connection.scalars(running.order_by(col(StudyRow.id))).all()
        reaped = Reaped()
        for study_id in found:  # a transaction each: studies are locked one at a time
            with self._write() as transaction:
                reaped += _reap(transaction, study_id, dead_place)
        return reaped


def _reap(transaction: Transaction, study_id: str, dead_place: str | None) -> Reaped:
    study = transaction.lock_study(study_id)
    if study.state is not StudyState.RUNNING:
        return Reaped()
    is_dead = dead_place is not None and study.place == dead_place
    reason = "its supervisor ended" if is_dead else "its supervisor gave no sign of life"
    ended = is_dead or is_over(study, transaction.moment)
    live = (
        select(AttemptRow)
        .join(TrialRow, col(TrialRow.id) == AttemptRow.trial_id)
        .where(col(TrialRow.study_id) == study.id, col(AttemptRow.outcome).is_(None))
        .order_by(col(AttemptRow.fence))
    )
    lost = tuple(
        transaction.end_attempt(attempt.fence, Outcome.LOST, reason=reason)
        for attempt in transaction.session.scalars(live).all()
        if ended or is_over(attempt, transaction.moment)
    )
    if not ended:
        return Reaped(trials=lost)
    if study.cancel_requested:
        transaction.end_study(study, StudyState.CANCELLED, "cancelled on request")
    else:
        told = events.study_lost(study.worker, reason)
        transaction.move_study(study, StudyState.QUEUED)
        transaction.append_event(study, EventKind.STUDY_LOST, told)
    return Reaped(trials=lost, studies=(study_id,))
