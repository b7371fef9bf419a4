"""Attempts at trials: claimed with their devices, kept alive, ended. Knows nothing about processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select, true, update
from sqlmodel import col

from ..optimizer.domain import HeldoutScores, Measurement, Outcome, Trial
from . import events
from .database import Database
from .events import EventKind
from .mapping import trial_of
from .tables import AttemptRow
from .transaction import require_running, stale

LEASE_S = 45.0
"""How long an attempt lives without a heartbeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run one trial on these devices, for as long as the lease is renewed."""

    trial: Trial
    fence: int
    """Names the attempt. Greater than the fence of every earlier attempt; writes carry it."""
    devices: tuple[str, ...]
    disturbed_before: int
    """Earlier attempts at the trial that were disturbed."""


class Attempts(Database):
    """What the store does with attempts."""

    def claim_trial(
        self,
        trial_id: str,
        *,
        devices: Sequence[str],
        worker: str,
        lease_s: float = LEASE_S,
        measurement_key: str | None = None,
    ) -> Claim | None:
        """Take a queued trial in hand, with the devices that it is to run on.

        Args:
            trial_id: a trial of a running study.
            devices: what no other attempt may use meanwhile: the UUIDs of GPUs, a name for the CPU.
            worker: who runs it, for people who look into the database.
            lease_s: how long the attempt lives without a heartbeat.
            measurement_key: what it is going to measure, for :meth:`find_measurement`; None if that is of
                no use to other studies.

        Returns:
            None when the trial is not queued any more or one of the devices is in use.

        Raises:
            NotFound: no trial has this id.
            Conflict: its study is not running.
        """
        with self._write() as transaction:
            study = transaction.lock_study_of_trial(trial_id)
            require_running(study)
            row = transaction.start_trial(trial_id, measurement_key)
            if row is None:
                return None
            attempt = AttemptRow(
                trial_id=row.id,
                number=row.attempts,
                worker=worker,
                boot_id=self._clock.boot_id,
                lease_until=self._clock.boot_s() + lease_s,
                started_at=transaction.now,
            )
            transaction.session.add(attempt)
            transaction.session.flush()
            if not transaction.lease_devices(attempt.fence, devices):
                return None
            trial = trial_of(row, study.ulid)
            transaction.append_event(study, EventKind.TRIAL_RUNNING, events.trial_running(trial, devices))
            return Claim(
                trial=trial,
                fence=attempt.fence,
                devices=tuple(devices),
                disturbed_before=transaction.count_attempts(row.id, Outcome.DISTURBED),
            )

    def heartbeat(self, claim: Claim, *, lease_s: float = LEASE_S) -> None:
        """Renew the lease of a live attempt: it lasts another ``lease_s`` from now.

        Raises:
            StaleFence: the attempt has ended: somebody held its worker for dead.
        """
        renewal = (
            update(AttemptRow)
            .where(col(AttemptRow.fence) == claim.fence, col(AttemptRow.outcome).is_(None))
            .values(lease_until=self._clock.boot_s() + lease_s, boot_id=self._clock.boot_id)
            .returning(col(AttemptRow.fence))
        )
        with self._write() as transaction:
            if transaction.session.scalars(renewal).one_or_none() is None:
                raise stale(claim.fence)

    def finish_attempt(
        self,
        claim: Claim,
        *,
        outcome: Outcome,
        reason: str | None = None,
        measurement: Measurement | None = None,
        heldout: HeldoutScores | None = None,
        log_tail: str | None = None,
        wall_s: float | None = None,
    ) -> Trial:
        """End a live attempt, free its devices, and finish its trial.

        A disturbed attempt takes the trial back to the queue instead, as does a lost one unless it was the
        last one allowed.

        Args:
            claim: the attempt.
            outcome: how it ended.
            reason: why, in a sentence.
            measurement: what was measured; kept when the trial is finished, and only then.
            heldout: what a training scored on each held-out row; kept with the measurement.
            log_tail: the end of what the trial's processes wrote.
            wall_s: from launch to the last report.

        Raises:
            StaleFence: the attempt has ended before: somebody held its worker for dead.
        """
        with self._write() as transaction:
            return transaction.end_attempt(
                claim.fence,
                outcome,
                reason=reason,
                measurement=measurement,
                heldout=heldout,
                log_tail=log_tail,
                wall_s=wall_s,
            )

    def release_attempt(self, claim: Claim, reason: str) -> Trial:
        """End a live attempt whose worker is to stop; its trial goes back to the queue, no failure counted.

        Raises:
            StaleFence: the attempt has ended before: somebody held its worker for dead.
        """
        with self._write() as transaction:
            return transaction.end_attempt(claim.fence, Outcome.CANCELLED, reason=reason, released=True)

    def expire_attempts(self, *, all_of_previous: bool = False) -> list[Trial]:
        """End live attempts that nobody looks after any more as lost. Returns their trials.

        Args:
            all_of_previous: end every live attempt, not only those whose lease is over or that a restart of
                the machine ended. For a newly elected supervisor, before it claims anything.
        """
        over = or_(
            col(AttemptRow.lease_until) <= self._clock.boot_s(),
            col(AttemptRow.boot_id) != self._clock.boot_id,
        )
        live = select(col(AttemptRow.fence)).where(col(AttemptRow.outcome).is_(None))
        abandoned = live.where(true() if all_of_previous else over).order_by(col(AttemptRow.fence))
        reason = "its supervisor ended" if all_of_previous else "its supervisor gave no sign of life"
        with self._write() as transaction:
            fences = transaction.session.scalars(abandoned).all()
            return [transaction.end_attempt(fence, Outcome.LOST, reason=reason) for fence in fences]
