"""Estimates: what dry runs told of shapes, kept beside what was then measured."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import bindparam
from sqlmodel import col

from ..optimizer.domain import Candidate, Estimate, Outcome, Rung, Trial
from ..optimizer.estimates.intervals import Fits
from .claims import StudyClaim
from .database import Database
from .mapping import estimate_of, trial_of
from .reading import ESTIMATES, TRIALS, find_study
from .tables import EstimateRow, StudyRow, TrialRow

_RULED_OUT = ESTIMATES.where(
    col(EstimateRow.study_id) == bindparam("key"), col(EstimateRow.fits) == Fits.NO
).order_by(col(EstimateRow.id))


class Estimates(Database):
    """What the store does with estimates."""

    def save_estimates(self, claim: StudyClaim, estimates: Mapping[Candidate, Estimate]) -> None:
        """Keep what dry runs told of shapes; a shape that something was told of before keeps that.

        Raises:
            StaleFence: the claim is over.
        """
        with self._write() as transaction:
            study = transaction.lock_claimed(claim)
            for candidate, estimate in estimates.items():
                if transaction.find_estimate(study, candidate) is None:
                    transaction.add_estimate(study, candidate, estimate)

    def list_estimates(self, study_id: str) -> dict[Candidate, Estimate]:
        """What dry runs told, in the order of telling: a candidate of each shape, and its estimate.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            query = ESTIMATES.where(col(EstimateRow.study_id) == study.id).order_by(col(EstimateRow.id))
            return dict(estimate_of(row) for row in connection.execute(query))

    def list_ruled_out(self, study_id: str, limit: int | None = None) -> dict[Candidate, Estimate]:
        """Of these estimates, the first ``limit`` of those that rule their candidate out; None: all.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            query = _RULED_OUT if limit is None else _RULED_OUT.limit(limit)
            return dict(estimate_of(row) for row in connection.execute(query, {"key": study.id}))

    def list_estimated(self, device: str) -> list[Trial]:
        """Probes, of any study, of which something had been estimated on this device, and that measured it or
        ran out of memory."""
        query = (
            TRIALS.add_columns(col(StudyRow.ulid).label("owner"))
            .join(StudyRow, col(StudyRow.id) == TrialRow.study_id)
            .where(
                col(EstimateRow.device) == device,
                col(TrialRow.rung) == Rung.PROBE,
                col(TrialRow.outcome).in_((Outcome.OK, Outcome.OOM)),
                col(TrialRow.reused_from).is_(None),
            )
            .order_by(col(TrialRow.id))
        )
        with self._read() as connection:
            return [trial_of(row, row.owner) for row in connection.execute(query)]
