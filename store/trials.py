"""Trials: planned, listed, found again. Knows nothing about attempts at them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import bindparam, func, select
from sqlmodel import col

from ..errors import NotFound
from ..optimizer.domain import StudyState, Trial, TrialPlan, TrialState
from .claims import StudyClaim
from .database import Database
from .mapping import heldout_of, trial_of
from .reading import TRIALS, TRIALS_OF_STUDY, find_study, text_of
from .tables import HeldoutRow, StudyRow, TrialRow

_TRIAL = (
    TRIALS.add_columns(col(StudyRow.ulid).label("owner"))
    .join(StudyRow, col(StudyRow.id) == TrialRow.study_id)
    .where(col(TrialRow.ulid) == bindparam("trial_id"))
)
_COUNTS = (
    select(col(StudyRow.ulid), col(TrialRow.state), func.count())
    .join(TrialRow, col(TrialRow.study_id) == StudyRow.id)
    .where(col(StudyRow.ulid).in_(bindparam("study_ids", expanding=True)))
    .group_by(col(StudyRow.ulid), col(TrialRow.state))
)


class Trials(Database):
    """What the store does with trials."""

    def plan_trial(self, claim: StudyClaim, plan: TrialPlan) -> Trial:
        """Put a trial of a running study into the queue, once.

        Returns the existing trial, whatever its state, where the study has one of this candidate, rung,
        replicate and number of steps: a resumed search meets its own trials again.

        Raises:
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            return transaction.plan_trial(transaction.lock_claimed(claim), plan)

    def list_trials(self, study_id: str, *, with_heldout: bool = False) -> list[Trial]:
        """All trials of a study, by number.

        Args:
            study_id: the study.
            with_heldout: with what each training scored on every held-out row, some 20 kB of it a training.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            if not with_heldout:
                rows = connection.execute(TRIALS_OF_STUDY, {"key": study.id})
                return [trial_of(row, study_id) for row in rows]
            scored = TRIALS_OF_STUDY.add_columns(text_of(HeldoutRow.scores, "scores")).outerjoin(
                HeldoutRow, col(HeldoutRow.trial_id) == TrialRow.id
            )
            return [
                replace(trial_of(row, study_id), heldout=row.scores and heldout_of(row.scores))
                for row in connection.execute(scored, {"key": study.id})
            ]

    def count_trials(self, study_ids: Collection[str]) -> dict[str, dict[TrialState, int]]:
        """How many trials each of these studies has in each state: every study and state has its number."""
        counts = {study_id: dict.fromkeys(TrialState, 0) for study_id in study_ids}
        with self._read() as connection:
            for study_id, state, count in connection.execute(_COUNTS, {"study_ids": list(study_ids)}):
                counts[study_id][state] = count
        return counts

    def get_trial(self, trial_id: str) -> Trial:
        """One trial.

        Raises:
            NotFound: no trial has this id.
        """
        with self._read() as connection:
            found = connection.execute(_TRIAL, {"trial_id": trial_id}).one_or_none()
        if found is None:
            raise NotFound(f"there is no trial {trial_id}")
        return trial_of(found, found.owner)

    def list_alike(self, structure_sha256: str, task: str, *, limit: int = 10) -> list[list[Trial]]:
        """Trials of the latest studies that succeeded with a model of this structure on this kind of task.

        Returns a list for each study, the oldest first.
        """
        facts = col(StudyRow.facts)
        query = (
            select(col(StudyRow.id), col(StudyRow.ulid))
            .where(
                col(StudyRow.state) == StudyState.SUCCEEDED,
                facts["model"]["structure_sha256"].as_string() == structure_sha256,
                facts["dataset"]["task"]["kind"].as_string() == task,
            )
            .order_by(col(StudyRow.id).desc())
            .limit(limit)
        )
        with self._read() as connection:
            names = dict(connection.execute(query).all())
            of_study: dict[int, list[Trial]] = {key: [] for key in sorted(names)}
            trials = TRIALS.add_columns(col(TrialRow.study_id)).where(col(TrialRow.study_id).in_(of_study))
            for row in connection.execute(trials.order_by(col(TrialRow.id))):
                of_study[row.study_id].append(trial_of(row, names[row.study_id]))
        return list(of_study.values())
