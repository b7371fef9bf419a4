"""What reads ask of the tables: the columns that domain types hold, and documents as the text that they are.

Pydantic reads a text several times as fast as what Python has made of it, and what a read finds needs none of
the watching for changes that the ORM's sessions do. Knows nothing about which rows are wanted.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Connection, Label, Row, Select, Text, bindparam, cast, select
from sqlmodel import SQLModel, col

from ..errors import NotFound
from .tables import EstimateRow, EventRow, StudyRow, TrialRow

Found: TypeAlias = Row[*tuple[Any, ...]]
"""A row of columns, which have the names that the tables' rows give them."""
Columns: TypeAlias = Select[*tuple[Any, ...]]


def all_of(table: type[SQLModel]) -> Columns:
    """All columns of a table."""
    return select(*table.metadata.tables[str(table.__tablename__)].columns)


def text_of(document: Any, name: str) -> Label[str]:
    """A column of documents, or a part of one, under this name, without being parsed."""
    return cast(document, Text).label(name)


STUDIES: Columns = select(
    col(StudyRow.ulid),
    text_of(StudyRow.request, "request"),
    col(StudyRow.state),
    col(StudyRow.created_at),
    col(StudyRow.updated_at),
    col(StudyRow.owner),
    col(StudyRow.cancel_requested),
    text_of(StudyRow.facts, "facts"),
    col(StudyRow.reason),
)
"""Rows for :func:`.mapping.study_of`."""

TRIALS: Columns = select(
    col(TrialRow.ulid),
    col(TrialRow.number),
    text_of(TrialRow.plan, "plan"),
    col(TrialRow.state),
    col(TrialRow.attempts),
    col(TrialRow.outcome),
    col(TrialRow.reason),
    text_of(TrialRow.measurement, "measurement"),
    col(TrialRow.log_tail),
    col(TrialRow.started_at),
    col(TrialRow.finished_at),
    col(TrialRow.wall_s),
    col(TrialRow.reused_from),
    text_of(EstimateRow.estimate, "told"),
).outerjoin_from(TrialRow, EstimateRow, col(EstimateRow.id) == TrialRow.estimate_id)
"""Rows for :func:`.mapping.trial_of`."""

TRIALS_OF_STUDY: Columns = TRIALS.where(col(TrialRow.study_id) == bindparam("key")).order_by(
    col(TrialRow.number)
)
"""All of one study, by number."""

ESTIMATES: Columns = select(
    text_of(EstimateRow.candidate, "candidate"), text_of(EstimateRow.estimate, "estimate")
)
"""Rows for :func:`.mapping.estimate_of`."""

EVENTS: Columns = select(
    col(EventRow.seq), col(EventRow.kind), text_of(EventRow.payload, "payload"), col(EventRow.created_at)
)
"""Rows for :func:`.mapping.event_of`."""

_STUDY: Columns = select(
    col(StudyRow.id),
    col(StudyRow.state),
    col(StudyRow.reason),
    col(StudyRow.last_event),
    col(StudyRow.worker),
    col(StudyRow.place),
    col(StudyRow.environment),
    col(StudyRow.boot_id),
    col(StudyRow.lease_until),
).where(col(StudyRow.ulid) == bindparam("study_id"))


def find_study(connection: Connection, study_id: str) -> Found:
    """The columns of a study's row that are neither documents nor seldom asked for.

    Raises:
        NotFound: no study has this id.
    """
    row = connection.execute(_STUDY, {"study_id": study_id}).one_or_none()
    if row is None:
        raise no_study(study_id)
    return row


def no_study(study_id: str) -> NotFound:
    """The error where no study has this id."""
    return NotFound(f"there is no study {study_id}", next_step="see `rankwise studies list`")
