"""Trials as figures: what tables and plots of a study need of each, read without what they do not.

A study of thousands of trials is read in a fraction of the time that whole trials take. Knows nothing of what
is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from ..optimizer.codec import from_json
from ..optimizer.domain import Candidate, Outcome, Rung, TrialState
from .database import Database
from .tables import EstimateRow, TrialRow
from .transaction import find_study

AT_A_TIME = 500
"""Ids in one statement: SQLite takes 999 values in older versions."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes whenever anything of a trial does."""

    trial_id: str
    state: TrialState
    attempts: int
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A trial with what was told and measured of it, by the names that the domain's types give these."""

    stamp: Stamp
    number: int
    candidate_id: str
    candidate: Candidate
    rung: Rung
    replicate: int
    train_steps: int
    outcome: Outcome | None
    measured: Mapping[str, Any]
    """Of a :class:`~..optimizer.domain.Measurement`; empty where nothing was measured."""
    told: Mapping[str, Any]
    """Of an :class:`~..optimizer.domain.Estimate`; empty where nothing was told."""
    wall_s: float | None


class FigureReading(Database):
    """What the store tells of all trials of a study at once."""

    def last_event(self, study_id: str) -> int:
        """The number of the newest event of a study; 0 before there is one.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            return find_study(session, study_id).last_event

    def list_stamps(self, study_id: str) -> tuple[int, list[Stamp]]:
        """The number of a study's newest event, and a stamp for each of its trials as they are then.

        Trials stand by number.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            study = find_study(session, study_id)
            query = (
                select(col(TrialRow.ulid), col(TrialRow.state), col(TrialRow.attempts), col(TrialRow.reason))
                .where(col(TrialRow.study_id) == study.id)
                .order_by(col(TrialRow.number))
            )
            return study.last_event, [Stamp(*row) for row in session.execute(query)]

    def list_figures(self, study_id: str, trial_ids: Collection[str]) -> Iterator[Figures]:
        """Of these trials of a study, in no certain order; what is none of its trials is passed over.

        Raises:
            NotFound: no study has this id.
        """
        left = iter(trial_ids)
        with self._read() as session:
            study = find_study(session, study_id)
            query = select(
                col(TrialRow.ulid),
                col(TrialRow.state),
                col(TrialRow.attempts),
                col(TrialRow.reason),
                col(TrialRow.number),
                col(TrialRow.candidate_id),
                col(TrialRow.plan)["candidate"],
                col(TrialRow.rung),
                col(TrialRow.replicate),
                col(TrialRow.train_steps),
                col(TrialRow.outcome),
                col(TrialRow.measurement),
                col(EstimateRow.estimate),
                col(TrialRow.wall_s),
            ).outerjoin(EstimateRow, col(EstimateRow.id) == TrialRow.estimate_id)
            while ids := list(islice(left, AT_A_TIME)):
                own = query.where(col(TrialRow.study_id) == study.id, col(TrialRow.ulid).in_(ids))
                for row in session.execute(own):
                    yield Figures(
                        stamp=Stamp(*row[:4]),
                        number=row[4],
                        candidate_id=row[5],
                        candidate=from_json(Candidate, row[6]),
                        rung=row[7],
                        replicate=row[8],
                        train_steps=row[9],
                        outcome=row[10],
                        measured=row[11] or {},
                        told=row[12] or {},
                        wall_s=row[13],
                    )
