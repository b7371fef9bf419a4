"""Attempts at trials: claimed with their devices, kept alive, ended. Knows nothing about processes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import col

from ..optimizer.domain import HeldoutScores, Measurement, Outcome, Trial
from . import events
from .claims import LEASE_S, Claim, StudyClaim
from .database import Database
from .events import EventKind
from .mapping import trial_of
from .tables import AttemptRow
from .transaction import stale


class Attempts(Database):
    """What the store does with attempts."""

    def claim_trial(
        self,
        claim: StudyClaim,
        trial_id: str,
        *,
        devices: Sequence[str],
        worker: str,
        lease_s: float = LEASE_S,
        measurement_key: str | None = None,
    ) -> Claim | None:
        """Take a queued trial in hand, with the devices that it is to run on.

        Args:
            claim: the right to run the trial's study.
            trial_id: the trial.
            devices: what no other attempt may use meanwhile: the UUIDs of GPUs, a name for the CPU.
            worker: who runs it, for people who look into the database.
            lease_s: how long the attempt lives without a heartbeat.
            measurement_key: what it is going to measure, for :meth:`find_measurement`; None if that is of
                no use to other studies.

        Returns:
            None when the trial is not queued any more or one of the devices is in use.

        Raises:
            NotFound: the study has no such trial.
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            study = transaction.lock_claimed(claim)
            row = transaction.start_trial(study, trial_id, measurement_key)
            if row is None:
                return None
            attempt = AttemptRow(
                trial_id=row.id,
                number=row.attempts,
                worker=worker,
                boot_id=transaction.moment.boot_id,
                lease_until=transaction.moment.boot_s + lease_s,
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
        with self._write() as transaction:
            moment = transaction.moment
            renewal = (
                update(AttemptRow)
                .where(col(AttemptRow.fence) == claim.fence, col(AttemptRow.outcome).is_(None))
                .values(lease_until=moment.boot_s + lease_s, boot_id=moment.boot_id)
                .returning(col(AttemptRow.fence))
            )
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
