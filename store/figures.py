"""Trials as figures: what tables and plots of a study need of each, read without what they do not.

A study of thousands of trials is read in a fraction of the time that whole trials take. Knows nothing of what
is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import pydantic_core
from sqlalchemy import select
from sqlmodel import col

from ..optimizer.codec import from_text
from ..optimizer.domain import Adapter, Candidate, HeldoutScores, Level, Outcome, Recipe, Rung, TrialState
from .database import Database
from .mapping import heldout_of
from .reading import Found, find_study, text_of
from .tables import EstimateRow, HeldoutRow, TrialRow

T = TypeVar("T")

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
        with self._read() as connection:
            number: int = find_study(connection, study_id).last_event
            return number

    def list_stamps(self, study_id: str, only: Sequence[str] | None = None) -> tuple[int, list[Stamp]]:
        """The number of a study's newest event, and a stamp for each of its trials as they are then.

        Trials stand by number.

        Args:
            study_id: the study.
            only: the ids of so many trials as one statement takes; None: all.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            query = (
                select(col(TrialRow.ulid), col(TrialRow.state), col(TrialRow.attempts), col(TrialRow.reason))
                .where(col(TrialRow.study_id) == study.id)
                .order_by(col(TrialRow.number))
            )
            if only is not None:
                query = query.where(col(TrialRow.ulid).in_(only))
            return study.last_event, [Stamp(*row) for row in connection.execute(query)]

    def list_figures(self, study_id: str, only: Collection[str] | None = None) -> Iterator[Figures]:
        """Of a study's trials, in no certain order.

        Args:
            study_id: the study.
            only: ids; what is none of the study's trials is passed over. None: all.

        Raises:
            NotFound: no study has this id.
        """
        candidate = col(TrialRow.plan)["candidate"]
        query = select(
            col(TrialRow.ulid),
            col(TrialRow.state),
            col(TrialRow.attempts),
            col(TrialRow.reason),
            col(TrialRow.number),
            col(TrialRow.candidate_id),
            text_of(candidate["adapter"], "adapter"),
            text_of(candidate["level"], "level"),
            text_of(candidate["recipe"], "recipe"),
            candidate["micro_batch"].as_integer().label("micro_batch"),
            candidate["learning_rate"].as_float().label("learning_rate"),
            col(TrialRow.rung),
            col(TrialRow.replicate),
            col(TrialRow.train_steps),
            col(TrialRow.outcome),
            text_of(TrialRow.measurement, "measured"),
            text_of(EstimateRow.estimate, "told"),
            col(TrialRow.wall_s),
        ).outerjoin(EstimateRow, col(EstimateRow.id) == TrialRow.estimate_id)
        reading = _Reading()
        with self._read() as connection:
            own = query.where(col(TrialRow.study_id) == find_study(connection, study_id).id)
            if only is None:
                yield from map(reading.figures, connection.execute(own))
                return
            left = iter(only)
            while ids := list(islice(left, AT_A_TIME)):
                yield from map(reading.figures, connection.execute(own.where(col(TrialRow.ulid).in_(ids))))

    def list_heldout(self, trial_ids: Collection[str]) -> dict[str, HeldoutScores]:
        """What these trials scored on each held-out row, by id: of those that were judged."""
        query = select(col(TrialRow.ulid), text_of(HeldoutRow.scores, "scores")).join(
            HeldoutRow, col(HeldoutRow.trial_id) == TrialRow.id
        )
        found: dict[str, HeldoutScores] = {}
        left = iter(trial_ids)
        with self._read() as connection:
            while ids := list(islice(left, AT_A_TIME)):
                rows = connection.execute(query.where(col(TrialRow.ulid).in_(ids)))
                found |= {trial_id: heldout_of(scores) for trial_id, scores in rows}
        return found


class _Reading:
    """Rows to figures. Thousands of candidates are made of few adapters and levels: each is read once."""

    def __init__(self) -> None:
        self._adapters, self._levels, self._recipes = _Parts(Adapter), _Parts(Level), _Parts(Recipe)

    def figures(self, row: Found) -> Figures:
        return Figures(
            stamp=Stamp(row.ulid, row.state, row.attempts, row.reason),
            number=row.number,
            candidate_id=row.candidate_id,
            candidate=Candidate(
                adapter=self._adapters.read(row.adapter),
                level=self._levels.read(row.level),
                recipe=self._recipes.read(row.recipe),
                micro_batch=row.micro_batch,
                learning_rate=row.learning_rate,
            ),
            rung=row.rung,
            replicate=row.replicate,
            train_steps=row.train_steps,
            outcome=row.outcome,
            measured=pydantic_core.from_json(row.measured) if row.measured else {},
            told=pydantic_core.from_json(row.told) if row.told else {},
            wall_s=row.wall_s,
        )


class _Parts(Generic[T]):
    """Parts of candidates by the JSON that the database holds."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._known: dict[str, T] = {}

    def read(self, text: str) -> T:
        if text not in self._known:
            self._known[text] = from_text(self._kind, text)
        return self._known[text]
