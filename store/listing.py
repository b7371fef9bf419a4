"""Pages of studies and trials: filtered, sorted, and gone on from a position.

A position is where a page ended, by the sorted column and a key: pages neither repeat nor leave out what was
there all the time, whatever is added meanwhile. Knows nothing of how positions are written in a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, or_, select, true
from sqlmodel import col

from ..optimizer.domain import Outcome, Rung, Study, StudyState, Trial, TrialState
from .database import Database
from .mapping import study_of, trial_of
from .marks import Mark, mark_columns, mark_of
from .reading import STUDIES, TRIALS, TRIALS_OF_STUDY, Columns, Found, find_study
from .tables import StudyRow, TrialRow

Position = tuple[Any, int]
"""The sorted value of the last item of a page, and its key."""


class StudySort(StrEnum):
    """What studies can be sorted by."""

    CREATED = "created"
    UPDATED = "updated"
    STATE = "state"


class TrialSort(StrEnum):
    """What a study's trials can be sorted by; those that have no such figure come last."""

    NUMBER = "number"
    SPEED = "speed"
    MEMORY = "memory"
    LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFilter:
    """Which studies; what is left out does not matter."""

    states: tuple[StudyState, ...] = ()
    model: str | None = None
    dataset: str | None = None
    owner: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    text: str | None = None
    """Part of the model's or the dataset's name, in whatever case, or the beginning of an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFilter:
    """Which trials of a study; what is left out does not matter."""

    rungs: tuple[Rung, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    states: tuple[TrialState, ...] = ()


@dataclass(frozen=True, slots=True)
class MarkPage:
    """Studies by their marks, and where the next page begins; None at the end."""

    marks: tuple[Mark, ...]
    next: Position | None


@dataclass(frozen=True, slots=True)
class TrialPage:
    """Trials, and where the next page begins; None at the end."""

    trials: tuple[Trial, ...]
    next: Position | None


_STUDY_COLUMNS = {
    StudySort.CREATED: col(StudyRow.id),
    StudySort.UPDATED: col(StudyRow.updated_at),
    StudySort.STATE: col(StudyRow.state),
}
_TRIAL_FIELDS = {
    TrialSort.NUMBER: "number",
    TrialSort.SPEED: "speed",
    TrialSort.MEMORY: "memory_bytes",
    TrialSort.LOSS: "loss",
}
_STUDIES = STUDIES.where(col(StudyRow.ulid).in_(bindparam("study_ids", expanding=True)))
# Where a statement names the study beside the few rows wanted, SQLite looks at all its trials.
_SHAPES = select(col(TrialRow.estimate_id), col(TrialRow.study_id)).where(
    col(TrialRow.ulid).in_(bindparam("trial_ids", expanding=True))
)
_OF_SHAPES = TRIALS.where(col(TrialRow.estimate_id).in_(bindparam("shapes", expanding=True))).order_by(
    col(TrialRow.number)
)


class Listing(Database):
    """What the store does to show many studies and trials."""

    def page_studies(
        self,
        wanted: StudyFilter,
        *,
        limit: int,
        sort: StudySort = StudySort.CREATED,
        descending: bool = True,
        after: Position | None = None,
        older_than: str | None = None,
    ) -> MarkPage:
        """One page of the studies that pass the filter, without their documents.

        Raises:
            NotFound: no study has the id ``older_than``.
        """
        column, key = _STUDY_COLUMNS[sort], col(StudyRow.id)
        query = select(key, column, *mark_columns()).where(*_study_conditions(wanted))
        query = _after(query, column, key, after, descending=descending, key_descends=descending)
        with self._read() as connection:
            if older_than is not None:
                query = query.where(key < find_study(connection, older_than).id)
            rows = connection.execute(query.limit(limit + 1)).all()
        more = len(rows) > limit
        marks = tuple(mark_of(*row[2:]) for row in rows[:limit])
        return MarkPage(marks, (rows[limit - 1][1], rows[limit - 1][0]) if more else None)

    def get_studies(self, study_ids: Sequence[str]) -> list[Study]:
        """These studies, in this order; those that are not there are left out."""
        with self._read() as connection:
            rows = connection.execute(_STUDIES, {"study_ids": list(study_ids)})
            found = {row.ulid: study_of(row) for row in rows}
        return [found[study_id] for study_id in study_ids if study_id in found]

    def page_trials(
        self,
        study_id: str,
        wanted: TrialFilter,
        *,
        limit: int,
        sort: TrialSort = TrialSort.NUMBER,
        descending: bool = False,
        after: Position | None = None,
    ) -> TrialPage:
        """One page of the trials of a study that pass the filter.

        Raises:
            NotFound: no study has this id.
        """
        among = {"rung": wanted.rungs, "outcome": wanted.outcomes, "state": wanted.states}
        given: dict[str, Any] = {name: values for name, values in among.items() if values}
        query = partial(_trials, sort, tuple(given), descending=descending)
        if after is not None:
            given |= {"after_value": after[0], "after_number": after[1]}
        with self._read() as connection:
            given["key"] = find_study(connection, study_id).id
            rows: list[Found] = []
            if after is None or after[0] is not None:
                measured = query(have_figure=True, go_on=after is not None)
                rows += connection.execute(measured, given | {"count": limit + 1})
            if len(rows) <= limit and sort is not TrialSort.NUMBER:
                rest = query(have_figure=False, go_on=after is not None and after[0] is None)
                rows += connection.execute(rest, given | {"count": limit + 1 - len(rows)})
            trials = tuple(trial_of(row, study_id) for row in rows[:limit])
        last = rows[limit - 1] if len(rows) > limit else None
        return TrialPage(trials, None if last is None else (last.sorted, last.number))

    def list_trials_of_shapes(self, study_id: str, trial_ids: Sequence[str]) -> list[Trial]:
        """These trials of a study with all others of their shapes, by number.

        Shapes are told apart by their estimates; where one of the trials has none, all of the study are read.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            study = find_study(connection, study_id)
            named = connection.execute(_SHAPES, {"trial_ids": list(trial_ids)})
            shapes = [shape for shape, study_key in named if study_key == study.id]
            if None in shapes:
                rows = connection.execute(TRIALS_OF_STUDY, {"key": study.id})
            else:
                rows = connection.execute(_OF_SHAPES, {"shapes": shapes})
            return [trial_of(row, study_id) for row in rows]


@cache
def _trials(
    sort: TrialSort, filters: tuple[str, ...], *, descending: bool, have_figure: bool, go_on: bool
) -> Columns:
    """Trials with a figure to sort by, or those without, from a position on or from the first.

    Building a statement takes longer than running it, so each of the few is kept.
    """
    column, key = col(getattr(TrialRow, _TRIAL_FIELDS[sort])), col(TrialRow.number)
    query = TRIALS.add_columns(column.label("sorted")).where(
        col(TrialRow.study_id) == bindparam("key"),
        column.is_not(None) if have_figure else column.is_(None),
        *(col(getattr(TrialRow, name)).in_(bindparam(name, expanding=True)) for name in filters),
    )
    value: Any = bindparam("after_value")
    number: Any = bindparam("after_number")
    if have_figure:
        query = _after(query, column, key, (value, number) if go_on else None, descending=descending)
    else:
        query = query.where(key > number if go_on else true()).order_by(key)
    return query.limit(bindparam("count"))


def _study_conditions(wanted: StudyFilter) -> list[ColumnElement[bool]]:
    found = _among(col(StudyRow.state), wanted.states)
    if wanted.model is not None:
        found.append(col(StudyRow.model) == wanted.model)
    if wanted.dataset is not None:
        found.append(col(StudyRow.dataset) == wanted.dataset)
    if wanted.owner is not None:
        found.append(col(StudyRow.owner) == wanted.owner)
    if wanted.created_from is not None:
        found.append(col(StudyRow.created_at) >= wanted.created_from)
    if wanted.created_before is not None:
        found.append(col(StudyRow.created_at) < wanted.created_before)
    if wanted.text:
        # Asked for by key, so that the index answers it: rows of studies are large.
        named = select(col(StudyRow.id)).where(
            or_(
                col(StudyRow.model).icontains(wanted.text, autoescape=True),
                col(StudyRow.dataset).icontains(wanted.text, autoescape=True),
                col(StudyRow.ulid).startswith(wanted.text.upper(), autoescape=True),
            )
        )
        found.append(col(StudyRow.id).in_(named))
    return found


def _among(column: Any, values: Sequence[Any]) -> list[ColumnElement[bool]]:
    return [column.in_(values)] if values else []


def _after(
    query: Select[Any],
    column: Any,
    key: Any,
    after: Position | None,
    *,
    descending: bool,
    key_descends: bool = False,
) -> Select[Any]:
    """The query in order, from a position on."""
    if after is not None:
        value, number = after
        further = key < number if key_descends else key > number
        beyond = column < value if descending else column > value
        query = query.where(or_(beyond, and_(column == value, further)))
    return query.order_by(
        column.desc() if descending else column.asc(), key.desc() if key_descends else key.asc()
    )
