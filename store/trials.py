"""Trials: planned, listed, found again. Knows nothing about attempts at them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import func, select
from sqlmodel import col

from ..errors import NotFound
from ..optimizer.domain import StudyState, Trial, TrialPlan, TrialState
from .claims import StudyClaim
from .database import Database
from .mapping import heldout_of, trial_of
from .tables import HeldoutRow, StudyRow, TrialRow
from .transaction import find_study


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
        with self._read() as session:
            study = find_study(session, study_id)
            query = select(TrialRow).where(col(TrialRow.study_id) == study.id).order_by(col(TrialRow.number))
            if not with_heldout:
                return [trial_of(row, study_id) for row in session.scalars(query)]
            scored = query.add_columns(HeldoutRow).outerjoin(HeldoutRow)
            return [
                replace(trial_of(row, study_id), heldout=None if scores is None else heldout_of(scores))
                for row, scores in session.execute(scored)
            ]

    def count_trials(self, study_ids: Collection[str]) -> dict[str, dict[TrialState, int]]:
        """How many trials each of these studies has in each state: every study and state has its number."""
        query = (
            select(col(StudyRow.ulid), col(TrialRow.state), func.count())
            .join(TrialRow, col(TrialRow.study_id) == StudyRow.id)
            .where(col(StudyRow.ulid).in_(study_ids))
            .group_by(col(StudyRow.ulid), col(TrialRow.state))
        )
        counts = {study_id: dict.fromkeys(TrialState, 0) for study_id in study_ids}
        with self._read() as session:
            for study_id, state, count in session.execute(query):
                counts[study_id][state] = count
        return counts

    def get_trial(self, trial_id: str) -> Trial:
        """One trial.

        Raises:
            NotFound: no trial has this id.
        """
        query = select(TrialRow, col(StudyRow.ulid)).join(StudyRow).where(col(TrialRow.ulid) == trial_id)
        with self._read() as session:
            found = session.execute(query).one_or_none()
        if found is None:
            raise NotFound(f"there is no trial {trial_id}")
        return trial_of(*found)

    def list_alike(self, structure_sha256: str, task: str, *, limit: int = 10) -> list[list[Trial]]:
        """Trials of the latest studies that succeeded with a model of this structure on this kind of task.

        Returns a list for each study, the oldest first.
        """
        facts = col(StudyRow.facts)
        query = (
            select(StudyRow)
            .where(
                col(StudyRow.state) == StudyState.SUCCEEDED,
                facts["model"]["structure_sha256"].as_string() == structure_sha256,
                facts["dataset"]["task"]["kind"].as_string() == task,
            )
            .order_by(col(StudyRow.id).desc())
            .limit(limit)
        )
        with self._read() as session:
            names = {study.id: study.ulid for study in session.scalars(query)}
            of_study: dict[int, list[Trial]] = {study_id: [] for study_id in sorted(names)}
            trials = select(TrialRow).where(col(TrialRow.study_id).in_(of_study)).order_by(col(TrialRow.id))
            for row in session.scalars(trials):
                of_study[row.study_id].append(trial_of(row, names[row.study_id]))
        return list(of_study.values())
