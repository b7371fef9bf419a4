"""Measurements that other studies have made already, found by key and taken over."""

from __future__ import annotations

from sqlmodel import col

from ..optimizer.domain import Outcome, Trial
from .claims import StudyClaim
from .database import Database
from .mapping import trial_of
from .reading import TRIALS
from .tables import StudyRow, TrialRow


class Measurements(Database):
    """What the store does with measurements made before."""

    def find_measurement(self, measurement_key: str) -> Trial | None:
        """The newest trial, of any study, that measured this undisturbed; None if there is none.

        Trials that took over a measurement are left out: it is the trial which measured that is found.
        """
        query = (
            TRIALS.add_columns(col(StudyRow.ulid).label("owner"))
            .join(StudyRow, col(StudyRow.id) == TrialRow.study_id)
            .where(
                col(TrialRow.measurement_key) == measurement_key,
                col(TrialRow.outcome) == Outcome.OK,
                col(TrialRow.reused_from).is_(None),
            )
            .order_by(col(TrialRow.finished_at).desc(), col(TrialRow.id).desc())
        )
        with self._read() as connection:
            trials = (trial_of(row, row.owner) for row in connection.execute(query))
            return next((it for it in trials if it.measurement and not it.measurement.disturbances), None)

    def reuse_measurement(self, claim: StudyClaim, trial_id: str, source: Trial) -> Trial:
        """Finish a queued trial as ok, with what another trial has measured.

        Args:
            claim: the right to run the trial's study.
            trial_id: the trial, of which no attempt is made.
            source: as :meth:`find_measurement` finds it.

        Raises:
            StaleFence: the claim is over.
            Conflict: the trial is not queued, or is another study's.
        """
        with self._write() as transaction:
            return transaction.reuse_measurement(transaction.lock_claimed(claim), trial_id, source)
