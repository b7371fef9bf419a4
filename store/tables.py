"""The tables, private to the store: integer keys inside, ULIDs for the world, JSON documents of frozen types.

Constraints make illegal rows impossible whoever writes them. All are named, because a migration can only
change what has a name. Knows nothing about transitions (see ``transitions.py``) or statements.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Enum,
    Index,
    MetaData,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import registry, relationship
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, Relationship, SQLModel

from ..optimizer.domain import Outcome, Rung, StudyState, TrialState
from ..roles import Role

NAMING_CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC, on databases that forget the zone too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Convert to UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Put the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _choice(kind: type[StrEnum], name: str, *, nullable: bool = False) -> Column[Any]:
    """A column of an enumeration's values, with the CHECK that admits no others."""
    choices = Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda kind: [member.value for member in kind],
    )
    return Column(choices, nullable=nullable)


def _document(*, nullable: bool = False) -> Column[Any]:
    """A column of JSON data, where None is SQL's NULL."""
    return Column(JSON(none_as_null=True), nullable=nullable)


def _moment(*, nullable: bool = False, index: bool = False) -> Column[Any]:
    return Column(UtcDateTime(), nullable=nullable, index=index)


class Row(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING_CONVENTION))):
    """Base of all tables, with metadata of its own: programs that import rankwise may use SQLModel too."""


class StudyRow(Row, table=True):
    """One study."""

    __tablename__ = "study"
    __table_args__ = (
        Index("ix_study_named", "model", "dataset", "ulid"),
        Index("ix_study_state_updated_at", "state", "updated_at"),
        CheckConstraint("wall_s >= 0", name="times"),
        CheckConstraint("last_event >= 0", name="last_event"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="leased"),
        CheckConstraint("(boot_id IS NULL) = (lease_until IS NULL)", name="lease"),
        CheckConstraint("state <> 'running' OR fence >= 1", name="claimed"),
    )

    id: int = Field(default=None, primary_key=True)
    ulid: str = Field(unique=True, max_length=26)
    request: dict[str, Any] = Field(sa_column=_document())
    state: StudyState = Field(sa_column=_choice(StudyState, "state"))
    cancel_requested: bool = False
    owner: str | None = Field(default=None, max_length=64)
    """The name of who asked for it; None on a command line."""
    facts: dict[str, Any] | None = Field(default=None, sa_column=_document(nullable=True))
    reason: str | None = None
    wall_s: float = 0.0
    last_event: int = 0
    """The last number given to an event; counting here numbers them without gaps."""
    fence: int = 0
    """How often it was claimed: the fencing token of its present run."""
    worker: str | None = None
    """Who runs it, or ran it last."""
    place: str | None = None
    """Where that is or was."""
    reserved_for: str | None = None
    """The only place that may run it; None: any."""
    environment: str | None = Field(default=None, max_length=64)
    """What its measurements may be compared with; None as long as there are none."""
    boot_id: str | None = None
    lease_until: float | None = None
    """Seconds since the boot ``boot_id``; of a running study only."""
    created_at: datetime = Field(sa_column=_moment(index=True))
    updated_at: datetime = Field(sa_column=_moment(index=True))
    model: str
    """As in the request, like the dataset: to search by."""
    dataset: str


class EstimateRow(Row, table=True):
    """What a dry run told of a shape, for one study."""

    __tablename__ = "estimate"
    __table_args__ = (
        UniqueConstraint("study_id", "shape_key"),
        Index("ix_estimate_study_id_fits", "study_id", "fits"),
    )

    id: int = Field(default=None, primary_key=True)
    study_id: int = Field(foreign_key="study.id")
    shape_key: str = Field(max_length=64)
    candidate: dict[str, Any] = Field(sa_column=_document())
    """One of this shape."""
    device: str = Field(index=True)
    estimate: dict[str, Any] = Field(sa_column=_document())
    fits: str | None = Field(default=None, max_length=20)
    """As in the estimate."""


class TrialRow(Row, table=True):
    """One trial."""

    __tablename__ = "trial"
    __table_args__ = (
        Index("ix_trial_totals", "state", "outcome", "rung", "wall_s"),
        Index("ix_trial_study_id_state", "study_id", "state"),
        Index("ix_trial_study_id_speed", "study_id", "speed"),
        Index("ix_trial_study_id_memory_bytes", "study_id", "memory_bytes"),
        Index("ix_trial_study_id_loss", "study_id", "loss"),
        UniqueConstraint("study_id", "number"),
        UniqueConstraint("study_id", "candidate_id", "rung", "replicate", "train_steps"),
        CheckConstraint(
            "number >= 1 AND replicate >= 0 AND train_steps >= 0 AND attempts >= 0", name="counts"
        ),
        CheckConstraint("wall_s >= 0", name="times"),
        CheckConstraint("(state = 'finished') = (outcome IS NOT NULL)", name="finished_outcome"),
        CheckConstraint("(state = 'finished') = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("state <> 'running' OR attempts >= 1", name="attempted"),
        CheckConstraint(
            "reused_from IS NULL OR (state = 'finished' AND outcome = 'ok' AND measurement IS NOT NULL)",
            name="reused",
        ),
        CheckConstraint("outcome <> 'disturbed'", name="undisturbed"),
    )

    id: int = Field(default=None, primary_key=True)
    ulid: str = Field(unique=True, max_length=26)
    study_id: int = Field(foreign_key="study.id")
    number: int
    candidate_id: str = Field(max_length=64)
    rung: Rung = Field(sa_column=_choice(Rung, "rung"))
    replicate: int
    train_steps: int
    plan: dict[str, Any] = Field(sa_column=_document())
    state: TrialState = Field(sa_column=_choice(TrialState, "state"))
    attempts: int = 0
    outcome: Outcome | None = Field(default=None, sa_column=_choice(Outcome, "outcome", nullable=True))
    reason: str | None = None
    measurement: dict[str, Any] | None = Field(default=None, sa_column=_document(nullable=True))
    log_tail: str | None = None
    started_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    wall_s: float | None = None
    measurement_key: str | None = Field(default=None, max_length=64, index=True)
    """Of what its attempts measure; None where that is of no use to other studies."""
    reused_from: str | None = Field(default=None, max_length=26, foreign_key="trial.ulid")
    estimate_id: int | None = Field(default=None, foreign_key="estimate.id", index=True)
    estimate: EstimateRow | None = Relationship(sa_relationship=relationship(EstimateRow, lazy="joined"))
    """What had been told of its shape when it was planned."""
    speed: float | None = None
    """Of the measurement, like the two that follow: to sort by."""
    memory_bytes: int | None = Field(default=None, sa_type=BigInteger)
    loss: float | None = None

    @property
    def told(self) -> dict[str, Any] | None:
        """The document of its estimate."""
        return None if self.estimate is None else self.estimate.estimate


class HeldoutRow(Row, table=True):
    """What a training scored on each held-out row. Apart from its trial: it is large, and seldom read."""

    __tablename__ = "heldout"

    trial_id: int = Field(foreign_key="trial.id", primary_key=True)
    scores: dict[str, Any] = Field(sa_column=_document())


class AttemptRow(Row, table=True):
    """One try at a trial. Live while it has no outcome; a trial has one live attempt at most."""

    __tablename__ = "attempt"
    __table_args__ = (
        UniqueConstraint("trial_id", "number"),
        Index(
            "uq_attempt_live",
            "trial_id",
            unique=True,
            sqlite_where=text("outcome IS NULL"),
            postgresql_where=text("outcome IS NULL"),
        ),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended"),
        CheckConstraint("wall_s >= 0", name="times"),
        {"sqlite_autoincrement": True},
    )

    fence: int = Field(default=None, primary_key=True)
    """Grows from attempt to attempt and is never given twice, so the key is the fencing token."""
    trial_id: int = Field(foreign_key="trial.id")
    number: int
    worker: str
    boot_id: str
    lease_until: float
    """Seconds since the boot ``boot_id``."""
    started_at: datetime = Field(sa_column=_moment())
    ended_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    outcome: Outcome | None = Field(default=None, sa_column=_choice(Outcome, "outcome", nullable=True))
    reason: str | None = None
    wall_s: float | None = None


class DeviceLeaseRow(Row, table=True):
    """A device in use. The row goes when the attempt ends."""

    __tablename__ = "device_lease"

    device: str = Field(primary_key=True)
    fence: int = Field(foreign_key="attempt.fence", index=True)


class QuarantineRow(Row, table=True):
    """A device that no trial is started on; or that is used all the same, because somebody said so."""

    __tablename__ = "quarantine"
    __table_args__ = (CheckConstraint("baseline_bytes >= 0", name="baseline"),)

    device: str = Field(primary_key=True, max_length=80)
    cause: str = Field(max_length=16)
    reason: str
    baseline_bytes: int | None = Field(default=None, sa_type=BigInteger)
    since: datetime = Field(sa_column=_moment())
    released: bool = False


class EventRow(Row, table=True):
    """One line of a study's history."""

    __tablename__ = "event"
    __table_args__ = (CheckConstraint("seq >= 1", name="seq"),)

    study_id: int = Field(foreign_key="study.id", primary_key=True)
    seq: int = Field(primary_key=True)
    kind: str
    payload: dict[str, Any] = Field(sa_column=_document())
    created_at: datetime = Field(sa_column=_moment())


class WebhookRow(Row, table=True):
    """An address that is told of a study."""

    __tablename__ = "webhook"
    __table_args__ = (
        UniqueConstraint("study_id", "url"),
        CheckConstraint("told >= 0 AND failures >= 0", name="counts"),
    )

    id: int = Field(default=None, primary_key=True)
    study_id: int = Field(foreign_key="study.id")
    url: str
    told: int = 0
    """Number of the last event that it was told."""
    failures: int = 0
    """In a row."""
    given_up: bool = False
    due_at: datetime = Field(sa_column=_moment(index=True))


class IdempotencyRow(Row, table=True):
    """A request that made a study, by the key that its caller gave it."""

    __tablename__ = "idempotency"

    caller: str = Field(primary_key=True)
    key: str = Field(primary_key=True, max_length=255)
    fingerprint: str = Field(max_length=64)
    study_id: int = Field(foreign_key="study.id")
    created_at: datetime = Field(sa_column=_moment(index=True))


class RecommendationRow(Row, table=True):
    """What a succeeded study recommends."""

    __tablename__ = "recommendation"

    study_id: int = Field(foreign_key="study.id", primary_key=True)
    snapshot: dict[str, Any] = Field(sa_column=_document())
    created_at: datetime = Field(sa_column=_moment())


class UploadRow(Row, table=True):
    """A dataset that somebody sent. The same one from two is two rows and one file."""

    __tablename__ = "upload"
    __table_args__ = (
        UniqueConstraint("upload", "owner"),
        CheckConstraint("size_bytes >= 0", name="size"),
    )

    id: int = Field(default=None, primary_key=True)
    upload: str = Field(max_length=80)
    """SHA-256 of the content, with the extension."""
    owner: str = Field(max_length=64)
    filename: str = Field(max_length=255)
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    created_at: datetime = Field(sa_column=_moment())


class AccessTokenRow(Row, table=True):
    """A secret that the service accepts, or accepted: its digest, whose it is and what it allows."""

    __tablename__ = "access_token"

    id: int = Field(default=None, primary_key=True)
    ulid: str = Field(unique=True, max_length=26)
    name: str = Field(max_length=64)
    role: Role = Field(sa_column=_choice(Role, "role"))
    digest: str = Field(unique=True, max_length=64)
    """SHA-256 of the secret."""
    created_at: datetime = Field(sa_column=_moment())
    expires_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    last_used_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    revoked_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))


class AccessSessionRow(Row, table=True):
    """A browser that showed a token and was given a secret of its own. The row goes when the session ends."""

    __tablename__ = "access_session"

    id: int = Field(default=None, primary_key=True)
    digest: str = Field(unique=True, max_length=64)
    token_id: int = Field(foreign_key="access_token.id", index=True)
    created_at: datetime = Field(sa_column=_moment())
    expires_at: datetime = Field(sa_column=_moment())
