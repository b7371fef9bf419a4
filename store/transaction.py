"""A transaction that writes: the steps that the store's methods are made of.

Whatever changes a study, its trials or its events locks the study's row before it reads what the change
depends on; numbers then have no gaps and flags no races. On SQLite, which ignores FOR UPDATE, BEGIN
IMMEDIATE has locked everything already. Knows nothing about connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer
from sqlmodel import col
from ulid import ULID

from ..errors import Conflict, NotFound, StaleFence
from ..optimizer.domain import (
    Candidate,
    Estimate,
    HeldoutScores,
    Measurement,
    Outcome,
    Recommendation,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
)
from ..optimizer.estimates.intervals import Fits
from . import events
from .claims import StudyClaim
from .clock import Moment
from .events import EventKind
from .mapping import document, heldout_document, measured, study_of, trial_of, without_nan
from .reading import Found, no_study
from .tables import (
    AttemptRow,
    DeviceLeaseRow,
    EstimateRow,
    EventRow,
    HeldoutRow,
    RecommendationRow,
    StudyRow,
    TrialRow,
)
from .transitions import MAX_ATTEMPTS, STUDY_SOURCES, TRIAL_SOURCES


def new_id() -> str:
    """A ULID: sorts by time, says nothing about how many there are."""
    return str(ULID())


def is_over(row: StudyRow | AttemptRow | Found, moment: Moment) -> bool:
    """Whether a lease has ended, with the time or with the machine's boot; so has one that there is not."""
    until_s = row.lease_until
    return until_s is None or until_s <= moment.boot_s or row.boot_id != moment.boot_id


def stale(fence: int) -> StaleFence:
    """The error for a write that comes too late."""
    return StaleFence(f"attempt {fence} has ended, or was never begun")


@dataclass(frozen=True, slots=True)
class Transaction:
    """A session whose transaction may write, with the moment that it notes everywhere."""

    session: Session
    moment: Moment

    @property
    def now(self) -> datetime:
        """The moment for people."""
        return self.moment.utc

    def lock_study(self, study_id: str) -> StudyRow:
        """The study's row, locked.

        Raises:
            NotFound: no study has this id.
        """
        seldom_read: Any = StudyRow.facts
        query = select(StudyRow).where(col(StudyRow.ulid) == study_id).options(defer(seldom_read))
        row = self.session.scalars(_locking(query)).one_or_none()
        if row is None:
            raise no_study(study_id)
        return row

    def lock_claimed(self, claim: StudyClaim) -> StudyRow:
        """The row of a study that is run under a claim, locked.

        Raises:
            NotFound: no study has this id.
            StaleFence: the claim is over: the study has ended, or somebody held its worker for dead.
        """
        row = self.lock_study(claim.id)
        if row.state is not StudyState.RUNNING or row.fence != claim.fence:
            raise StaleFence(f"run {claim.fence} of study {claim.id} is over: it is {row.state}")
        return row

    def append_event(self, study: StudyRow, kind: str, payload: Mapping[str, Any] | None = None) -> EventRow:
        """Number an event of a locked study and add it."""
        study.last_event += 1
        study.updated_at = self.now
        row = EventRow(
            study_id=study.id,
            seq=study.last_event,
            kind=kind,
            payload=without_nan(dict(payload or {})),
            created_at=self.now,
        )
        self.session.add(row)
        return row

    def move_study(self, study: StudyRow, target: StudyState) -> None:
        """Change the state of a locked study.

        Raises:
            Conflict: ``transitions.py`` forbids it, or one of its trials is running.
        """
        running = select(col(TrialRow.number)).where(
            col(TrialRow.study_id) == study.id, col(TrialRow.state) == TrialState.RUNNING
        )
        if (number := self.session.scalars(running).first()) is not None:
            raise _conflict(study, f"its trial {number} still runs")
        move = (
            update(StudyRow)
            .where(col(StudyRow.id) == study.id, col(StudyRow.state).in_(STUDY_SOURCES[target]))
            .values(state=target, lease_until=None, boot_id=None)
            .returning(col(StudyRow.id))
        )
        if self.session.scalars(move).one_or_none() is None:
            raise _conflict(study, f"it cannot become {target}")

    def end_study(
        self,
        study: StudyRow,
        state: StudyState,
        reason: str | None,
        recommendation: Recommendation | None = None,
    ) -> None:
        """Take a locked study to a final state: its queued trials are cancelled, its recommendation is kept.

        Raises:
            Conflict: as :meth:`move_study`.
        """
        self.move_study(study, state)
        study.reason = reason
        drop = (
            update(TrialRow)
            .where(col(TrialRow.study_id) == study.id, col(TrialRow.state) == TrialState.QUEUED)
            .values(
                state=TrialState.FINISHED,
                outcome=Outcome.CANCELLED,
                reason="its study ended before its turn came",
                finished_at=self.now,
            )
            .returning(TrialRow)
        )
        for row in self.session.scalars(drop).all():
            trial = trial_of(row, study.ulid)
            self.append_event(study, EventKind.TRIAL_FINISHED, events.trial_finished(trial))
        if recommendation is not None:
            snapshot = document(recommendation)
            self.session.add(RecommendationRow(study_id=study.id, snapshot=snapshot, created_at=self.now))
        self.append_event(
            study, EventKind.STUDY_FINISHED, events.study_finished(study_of(study), recommendation)
        )

    def plan_trial(self, study: StudyRow, plan: TrialPlan) -> Trial:
        """The trial of this plan; a locked, running study is given it where it has none yet."""
        of_study = col(TrialRow.study_id) == study.id
        candidate_id = plan.candidate.id
        existing = select(TrialRow).where(
            of_study,
            col(TrialRow.candidate_id) == candidate_id,
            col(TrialRow.rung) == plan.rung,
            col(TrialRow.replicate) == plan.replicate,
            col(TrialRow.train_steps) == plan.train_steps,
        )
        if row := self.session.scalars(existing).one_or_none():
            return trial_of(row, study.ulid)
        last_number = self.session.scalars(select(func.max(TrialRow.number)).where(of_study)).one()
        row = TrialRow(
            ulid=new_id(),
            study_id=study.id,
            number=(last_number or 0) + 1,
            candidate_id=candidate_id,
            rung=plan.rung,
            replicate=plan.replicate,
            train_steps=plan.train_steps,
            plan=document(plan),
            state=TrialState.QUEUED,
            estimate=self.find_estimate(study, plan.candidate),
        )
        self.session.add(row)
        trial = trial_of(row, study.ulid)
        self.append_event(study, EventKind.TRIAL_PLANNED, events.trial_planned(trial))
        return trial

    def find_estimate(self, study: StudyRow, candidate: Candidate) -> EstimateRow | None:
        """What a study was told of a candidate's shape."""
        query = select(EstimateRow).where(
            col(EstimateRow.study_id) == study.id, col(EstimateRow.shape_key) == candidate.shape_key
        )
        return self.session.scalars(query).one_or_none()

    def add_estimate(self, study: StudyRow, candidate: Candidate, estimate: Estimate) -> None:
        """Note what a locked study was told of a shape of which it had been told nothing."""
        self.session.add(
            EstimateRow(
                study_id=study.id,
                shape_key=candidate.shape_key,
                candidate=document(candidate),
                device=estimate.device,
                estimate=document(estimate),
                fits=estimate.fits,
            )
        )
        if estimate.fits is Fits.NO:
            told = events.candidate_ruled_out(candidate, estimate)
            self.append_event(study, EventKind.CANDIDATE_RULED_OUT, told)

    def reuse_measurement(self, study: StudyRow, trial_id: str, source: Trial) -> Trial:
        """Finish a queued trial of a locked, running study with the measurement of another one.

        Raises:
            Conflict: it is not queued.
        """
        finish = (
            update(TrialRow)
            .where(
                col(TrialRow.ulid) == trial_id,
                col(TrialRow.study_id) == study.id,
                col(TrialRow.state) == TrialState.QUEUED,
            )
            .values(
                state=TrialState.FINISHED,
                outcome=Outcome.OK,
                reason=None,
                **measured(source.measurement),
                reused_from=source.id,
                finished_at=self.now,
                wall_s=0.0,
            )
            .returning(TrialRow)
        )
        row = self.session.scalars(finish).one_or_none()
        if row is None:
            raise Conflict(f"trial {trial_id} is not queued: nothing can be taken over for it")
        self.session.execute(
            insert(HeldoutRow).from_select(
                ["trial_id", "scores"],
                select(literal(row.id), col(HeldoutRow.scores))
                .join(TrialRow, col(TrialRow.id) == HeldoutRow.trial_id)
                .where(col(TrialRow.ulid) == source.id),
            )
        )
        trial = trial_of(row, study.ulid)
        self.append_event(study, EventKind.TRIAL_FINISHED, events.trial_finished(trial))
        return trial

    def start_trial(self, study: StudyRow, trial_id: str, measurement_key: str | None) -> TrialRow | None:
        """queued → running with one attempt more; None where the trial of a locked study is not queued.

        Raises:
            NotFound: the study has no such trial.
        """
        of_study = (col(TrialRow.ulid) == trial_id, col(TrialRow.study_id) == study.id)
        if self.session.scalars(select(col(TrialRow.id)).where(*of_study)).one_or_none() is None:
            raise NotFound(f"study {study.ulid} has no trial {trial_id}")
        start = (
            update(TrialRow)
            .where(*of_study, col(TrialRow.state).in_(TRIAL_SOURCES[TrialState.RUNNING]))
            .values(
                state=TrialState.RUNNING,
                attempts=TrialRow.attempts + 1,
                started_at=self.now,
                reason=None,
                log_tail=None,
                wall_s=None,
                measurement_key=measurement_key,
            )
            .returning(TrialRow)
        )
        return self.session.scalars(start).one_or_none()

    def lease_devices(self, fence: int, devices: Sequence[str]) -> bool:
        """Whether all devices were free. Where not, the transaction is rolled back."""
        # In one order whoever asks, or two that want the same two would wait for each other.
        self.session.add_all(DeviceLeaseRow(device=device, fence=fence) for device in sorted(devices))
        try:
            self.session.flush()
        except IntegrityError:
            self.session.rollback()
            return False
        return True

    def end_attempt(
        self,
        fence: int,
        outcome: Outcome,
        *,
        reason: str | None,
        measurement: Measurement | None = None,
        heldout: HeldoutScores | None = None,
        log_tail: str | None = None,
        wall_s: float | None = None,
        released: bool = False,
    ) -> Trial:
        """End a live attempt and free its devices; finish its trial, or requeue it to be tried again.

        Only lost attempts are limited here; how often a disturbed one is worth repeating, the caller knows.

        Raises:
            StaleFence: the attempt is not live.
        """
        query = (
            select(StudyRow)
            .join(TrialRow, col(TrialRow.study_id) == StudyRow.id)
            .join(AttemptRow, col(AttemptRow.trial_id) == TrialRow.id)
            .where(col(AttemptRow.fence) == fence)
        )
        study = self.session.scalars(_locking(query)).one_or_none()
        wall_s = without_nan(wall_s)
        end = (
            update(AttemptRow)
            .where(col(AttemptRow.fence) == fence, col(AttemptRow.outcome).is_(None))
            .values(outcome=outcome, ended_at=self.now, reason=reason, wall_s=wall_s)
            .returning(AttemptRow)
        )
        attempt = self.session.scalars(end).one_or_none()
        if study is None or attempt is None:
            raise stale(fence)
        self.session.execute(delete(DeviceLeaseRow).where(col(DeviceLeaseRow.fence) == fence))

        report: dict[str, Any] = {"reason": reason, "log_tail": log_tail, "wall_s": wall_s}
        disturbed = outcome is Outcome.DISTURBED
        lost = outcome is Outcome.LOST and self.count_attempts(attempt.trial_id, outcome) < MAX_ATTEMPTS
        if released or lost or disturbed:
            row = self._move_trial(attempt.trial_id, TrialState.QUEUED, started_at=None, **report)
            trial = trial_of(row, study.ulid)
            kind = EventKind.TRIAL_DISTURBED if disturbed else EventKind.TRIAL_LOST
            self.append_event(study, kind, events.trial_requeued(trial))
        else:
            report |= measured(measurement)
            row = self._move_trial(
                attempt.trial_id, TrialState.FINISHED, outcome=outcome, finished_at=self.now, **report
            )
            if heldout is not None:
                self.session.add(HeldoutRow(trial_id=row.id, scores=heldout_document(heldout)))
            trial = replace(trial_of(row, study.ulid), heldout=heldout)
            self.append_event(study, EventKind.TRIAL_FINISHED, events.trial_finished(trial))
        return trial

    def count_attempts(self, trial_key: int, outcome: Outcome) -> int:
        """How many attempts at the trial ended this way."""
        count = select(func.count()).where(
            col(AttemptRow.trial_id) == trial_key, col(AttemptRow.outcome) == outcome
        )
        return self.session.scalars(count).one()

    def _move_trial(self, key: int, target: TrialState, **values: Any) -> TrialRow:
        move = (
            update(TrialRow)
            .where(col(TrialRow.id) == key, col(TrialRow.state).in_(TRIAL_SOURCES[target]))
            .values(state=target, **values)
            .returning(TrialRow)
        )
        return self.session.scalars(move).one()


def _locking(query: Select[StudyRow]) -> Select[StudyRow]:
    return query.with_for_update(of=StudyRow)


def _conflict(study: StudyRow, why: str) -> Conflict:
    next_step = "start a new study" if study.state.is_final else ""
    return Conflict(f"study {study.ulid} is {study.state}: {why}", next_step=next_step)
