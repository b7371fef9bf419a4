"""Studies: created, claimed, cancelled, ended. Knows nothing about how their trials are run."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, true, update
from sqlmodel import col

from ..errors import NotFound
from ..optimizer.domain import (
    Recommendation,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
)
from ..optimizer.keys import environment_key
from . import events
from .claims import LEASE_S, StudyClaim, Worker
from .database import Database
from .events import EventKind
from .mapping import document, recommendation_of, request_of, study_of
from .reading import STUDIES, find_study, no_study, text_of
from .tables import AttemptRow, RecommendationRow, StudyRow, TrialRow, WebhookRow
from .transaction import Transaction, is_over, new_id
from .transitions import STUDY_SOURCES

_STUDY = STUDIES.where(col(StudyRow.ulid) == bindparam("study_id"))
_REQUEST = select(text_of(StudyRow.request, "request")).where(col(StudyRow.ulid) == bindparam("study_id"))
_SNAPSHOT = select(text_of(RecommendationRow.snapshot, "snapshot")).where(
    col(RecommendationRow.study_id) == bindparam("key")
)


class Studies(Database):
    """What the store does with studies."""

    def create_study(
        self,
        request: StudyRequest,
        *,
        owner: str | None = None,
        reserved_for: str | None = None,
        webhooks: Collection[str] = (),
    ) -> Study:
        """Put a study into the queue.

        Args:
            request: what is asked for.
            owner: the name of whoever asks.
            reserved_for: the only place whose worker may claim it unasked; None: any.
            webhooks: addresses that are told of it.
        """
        with self._write() as transaction:
            return study_of(self._add_study(transaction, request, owner, reserved_for, webhooks))

    def get_study(self, study_id: str) -> Study:
        """One study.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            row = connection.execute(_STUDY, {"study_id": study_id}).one_or_none()
        if row is None:
            raise no_study(study_id)
        return study_of(row)

    def get_request(self, study_id: str) -> StudyRequest:
        """What was asked for with one study.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            request = connection.scalar(_REQUEST, {"study_id": study_id})
        if request is None:
            raise no_study(study_id)
        return request_of(request)

    def list_studies(
        self, *, limit: int = 50, before: str | None = None, state: StudyState | None = None
    ) -> list[Study]:
        """Studies, newest first.

        Args:
            limit: how many at most.
            before: only studies older than the one with this id: the last of the previous page.
            state: only studies in this state.

        Raises:
            NotFound: no study has the id ``before``.
        """
        query = STUDIES.order_by(col(StudyRow.id).desc()).limit(limit)
        if state is not None:
            query = query.where(col(StudyRow.state) == state)
        with self._read() as connection:
            if before is not None:
                query = query.where(col(StudyRow.id) < find_study(connection, before).id)
            return [study_of(row) for row in connection.execute(query)]

    def unfinished_ids(self) -> set[str]:
        """The ids of studies that have not ended, and of all their trials."""
        going_on = col(StudyRow.state).not_in([state for state in StudyState if state.is_final])
        studies = select(col(StudyRow.ulid)).where(going_on)
        trials = select(col(TrialRow.ulid)).join(StudyRow).where(going_on)
        with self._read() as connection:
            return {*connection.scalars(studies), *connection.scalars(trials)}

    def claim_study(
        self, worker: Worker, *, only: str | None = None, lease_s: float = LEASE_S
    ) -> StudyClaim | None:
        """Take the oldest queued study in hand: queued → running. None if there is none for this worker.

        What other places have reserved is left to them, and so is what was measured in another environment:
        two measurements must be comparable.

        Args:
            worker: who is going to run it.
            only: claim no other than this one, wherever it was meant for.
            lease_s: how long the claim lives without a heartbeat.
        """
        oldest = select(col(StudyRow.id), col(StudyRow.place)).where(
            col(StudyRow.state).in_(STUDY_SOURCES[StudyState.RUNNING])
        )
        if only is not None:
            oldest = oldest.where(col(StudyRow.ulid) == only)
        else:
            oldest = oldest.where(_is_for(worker))
        oldest = oldest.order_by(col(StudyRow.id)).limit(1).with_for_update(skip_locked=True)
        with self._write() as transaction:
            found = transaction.session.execute(oldest).one_or_none()
            if found is None:
                return None
            key, last_place = found
            claim = (
                update(StudyRow)
                .where(col(StudyRow.id) == key, col(StudyRow.state).in_(STUDY_SOURCES[StudyState.RUNNING]))
                .values(
                    state=StudyState.RUNNING,
                    fence=StudyRow.fence + 1,
                    worker=worker.name,
                    place=worker.place,
                    boot_id=transaction.moment.boot_id,
                    lease_until=transaction.moment.boot_s + lease_s,
                )
                .returning(StudyRow)
            )
            row = transaction.session.scalars(claim).one()
            transaction.append_event(row, EventKind.STUDY_RUNNING, events.study_running(worker.name))
            moved = last_place not in (None, worker.place)
            return StudyClaim(study=study_of(row), fence=row.fence, moved=moved)

    def renew_study(self, claim: StudyClaim, *, lease_s: float = LEASE_S) -> None:
        """Renew the claim: it lasts another ``lease_s`` from now.

        Raises:
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            row = transaction.lock_claimed(claim)
            row.boot_id = transaction.moment.boot_id
            row.lease_until = transaction.moment.boot_s + lease_s

    def holder_of(self, study_id: str) -> Worker | None:
        """Who runs a study; None if nobody does, or gave no sign of life in time.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            row = find_study(connection, study_id)
            if is_over(row, self._clock.now(connection)):
                return None
            return Worker(name=row.worker or "", place=row.place or "", environment=row.environment)

    def release_study(self, claim: StudyClaim) -> Study:
        """Put a study back into the queue, for the next supervisor: running → queued.

        Raises:
            StaleFence: the claim is over.
            Conflict: one of its trials is still running.
        """
        with self._write() as transaction:
            row = transaction.lock_claimed(claim)
            transaction.move_study(row, StudyState.QUEUED)
            transaction.append_event(row, EventKind.STUDY_RELEASED)
            return study_of(row)

    def request_cancel(self, study_id: str) -> Study:
        """Cancel a queued study at once; ask the supervisor to cancel a running one.

        Raises:
            NotFound: no study has this id.
            Conflict: it has ended.
        """
        with self._write() as transaction:
            row = transaction.lock_study(study_id)
            if row.state is not StudyState.RUNNING:
                transaction.end_study(row, StudyState.CANCELLED, "cancelled on request")
            elif not row.cancel_requested:
                transaction.append_event(row, EventKind.STUDY_CANCEL_REQUESTED)
            row.cancel_requested = True
            return study_of(row)

    def save_facts(self, claim: StudyClaim, facts: StudyFacts) -> Study:
        """Keep what the probes found, in place of facts found before.

        Raises:
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            row = transaction.lock_claimed(claim)
            row.facts = document(facts)
            row.environment = environment_key(facts.hardware)
            transaction.append_event(row, EventKind.STUDY_FACTS, events.study_facts(facts))
            return study_of(row)

    def add_wall(self, claim: StudyClaim, wall_s: float) -> float:
        """Add to the study's wall time, so that it survives restarts. Returns the sum over all its runs.

        Raises:
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            row = transaction.lock_claimed(claim)
            row.wall_s += wall_s
            return row.wall_s

    def attempts_wall_s(self, study_id: str) -> float:
        """Time in attempts at the study's trials that ended, whatever came of them.

        Unknown, and counted as none, is that of attempts whose worker died.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            query = (
                select(func.sum(AttemptRow.wall_s))
                .join(TrialRow, col(TrialRow.id) == AttemptRow.trial_id)
                .where(col(TrialRow.study_id) == study.id)
            )
            return connection.scalars(query).one() or 0.0

    def finish_study(
        self,
        claim: StudyClaim,
        state: StudyState,
        reason: str | None = None,
        recommendation: Recommendation | None = None,
    ) -> Study:
        """End a running study. Trials of it that are still queued are finished as cancelled.

        Args:
            claim: the right to run it.
            state: succeeded, failed or cancelled.
            reason: why it failed or ended early, in a sentence.
            recommendation: what it recommends; given exactly when it succeeded.

        Raises:
            StaleFence: the claim is over.
            Conflict: one of its trials is still running.
        """
        if not state.is_final or (state is StudyState.SUCCEEDED) != (recommendation is not None):
            given = "with" if recommendation else "without"
            raise ValueError(f"a study cannot end as {state} {given} a recommendation")
        with self._write() as transaction:
            row = transaction.lock_claimed(claim)
            transaction.end_study(row, state, reason, recommendation)
            return study_of(row)

    def get_recommendation(self, study_id: str) -> Recommendation:
        """What a study recommends.

        Raises:
            NotFound: no study has this id, or it has no recommendation (yet).
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            snapshot = connection.scalar(_SNAPSHOT, {"key": study.id})
        if snapshot is not None:
            return recommendation_of(snapshot)
        if study.state.is_final:
            why = f" ({study.reason})" if study.reason else ""
            raise NotFound(
                f"study {study_id} has no recommendation: it ended as {study.state}{why}",
                next_step=f"see its trials with `rankwise studies show {study_id}`",
            )
        raise NotFound(
            f"study {study_id} has no recommendation yet: it is {study.state}",
            next_step=f"run it to its end with `rankwise recommend --resume {study_id}`",
        )

    def _add_study(
        self,
        transaction: Transaction,
        request: StudyRequest,
        owner: str | None,
        reserved_for: str | None = None,
        webhooks: Collection[str] = (),
    ) -> StudyRow:
        row = StudyRow(
            ulid=new_id(),
            request=document(request),
            owner=owner,
            state=StudyState.QUEUED,
            reserved_for=reserved_for,
            created_at=transaction.now,
            updated_at=transaction.now,
            model=request.model,
            dataset=request.dataset,
        )
        transaction.session.add(row)
        transaction.session.flush()
        transaction.append_event(row, EventKind.STUDY_CREATED, events.study_created(request))
        transaction.session.add_all(
            WebhookRow(study_id=row.id, url=url, due_at=transaction.now) for url in dict.fromkeys(webhooks)
        )
        return row


def _is_for(worker: Worker) -> ColumnElement[bool]:
    """Whether a worker may claim a study unasked."""
    comparable: ColumnElement[bool] = true()
    if worker.environment is not None:
        comparable = or_(col(StudyRow.environment).is_(None), col(StudyRow.environment) == worker.environment)
    return or_(
        and_(col(StudyRow.reserved_for).is_(None), comparable),
        col(StudyRow.reserved_for) == worker.place,
        col(StudyRow.place) == worker.place,
    )
