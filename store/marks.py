"""How far studies have come, without their documents: what followers and caches compare.

A look at a mark costs microseconds, whatever a study holds. Knows nothing about who follows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, or_, select
from sqlmodel import col

from ..optimizer.domain import StudyState
from .database import Database
from .reading import no_study
from .tables import StudyRow

LIVE = tuple(state for state in StudyState if not state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where a study stands. Every change of a study, and of anything that belongs to it, changes its mark."""

    study_id: str
    state: StudyState
    reason: str | None
    cancel_requested: bool
    last_event: int
    updated_at: datetime


class Marks(Database):
    """What the store tells of studies to those who only want to know whether they changed."""

    def get_mark(self, study_id: str) -> Mark:
        """Where one study stands.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as connection:
            row = connection.execute(_MARK, {"study_id": study_id}).one_or_none()
        if row is None:
            raise no_study(study_id)
        return mark_of(*row)

    def list_marks(self, *, newer_than: str | None = None, also: Collection[str] = ()) -> list[Mark]:
        """Studies that are not final, and others by choice, in the order in which they changed last.

        Args:
            newer_than: all that were created after the study with this id; None for none of the final ones.
            also: ids of studies of which the mark is wanted whatever their state.
        """
        wanted: list[ColumnElement[bool]] = [col(StudyRow.state).in_(LIVE)]
        if also:
            wanted.append(col(StudyRow.ulid).in_(also))
        if newer_than is not None:
            wanted.append(col(StudyRow.ulid) > newer_than)
        return self._marks(or_(*wanted))

    def list_marks_since(self, moment: datetime, *, limit: int) -> list[Mark]:
        """The studies that changed last, at ``moment`` or later, in the order in which they did."""
        return self._marks(col(StudyRow.updated_at) >= moment, limit=limit)

    def newest_study(self) -> str:
        """The id of the study that was created last; empty where there is none."""
        newest = select(col(StudyRow.ulid)).order_by(col(StudyRow.ulid).desc()).limit(1)
        with self._read() as connection:
            return connection.scalars(newest).one_or_none() or ""

    def _marks(self, where: ColumnElement[bool], *, limit: int | None = None) -> list[Mark]:
        changed = (col(StudyRow.updated_at), col(StudyRow.id))
        query = select(*mark_columns()).where(where).order_by(*(each.desc() for each in changed)).limit(limit)
        with self._read() as connection:
            found = [mark_of(*row) for row in connection.execute(query)]
        return found[::-1]


def mark_columns() -> tuple[Any, ...]:
    """What :func:`mark_of` takes."""
    return (
        col(StudyRow.ulid),
        col(StudyRow.state),
        col(StudyRow.reason),
        col(StudyRow.cancel_requested),
        col(StudyRow.last_event),
        col(StudyRow.updated_at),
    )


_MARK = select(*mark_columns()).where(col(StudyRow.ulid) == bindparam("study_id"))


def mark_of(
    study_id: str,
    state: StudyState,
    reason: str | None,
    cancel_requested: bool,
    last_event: int,
    updated_at: datetime,
) -> Mark:
    """The mark that these columns hold."""
    return Mark(
        study_id=study_id,
        state=state,
        reason=reason,
        cancel_requested=cancel_requested,
        last_event=last_event,
        updated_at=updated_at,
    )
