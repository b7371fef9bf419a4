"""Studies, trials with their attempts and device leases, events, recommendations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

STUDY_STATES = "'queued', 'running', 'succeeded', 'failed', 'cancelled'"
TRIAL_STATES = "'queued', 'running', 'finished'"
OUTCOMES = "'ok', 'oom', 'host-oom', 'diverged', 'invalid', 'timeout', 'crashed', 'lost', 'cancelled'"


def upgrade() -> None:
    """Create every table."""
    create_study()
    create_trial()
    create_attempt()
    create_device_lease()
    create_event()
    create_recommendation()


def create_study() -> None:
    """One row a study."""
    op.create_table(
        "study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ulid", sa.String(26), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("wall_s", sa.Float(), nullable=False),
        sa.Column("measured_s", sa.Float(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.CheckConstraint("wall_s >= 0 AND measured_s >= 0", name=op.f("ck_study_times")),
        sa.CheckConstraint("last_event >= 0", name=op.f("ck_study_last_event")),
        sa.UniqueConstraint("ulid", name=op.f("uq_study_ulid")),
        sa.CheckConstraint(f"state IN ({STUDY_STATES})", name=op.f("ck_study_state")),
    )


def create_trial() -> None:
    """One row a trial of a study."""
    op.create_table(
        "trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ulid", sa.String(26), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("candidate_id", sa.String(64), nullable=False),
        sa.Column("rung", sa.String(16), nullable=False),
        sa.Column("replicate", sa.Integer(), nullable=False),
        sa.Column("train_steps", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("measurement", sa.JSON(), nullable=True),
        sa.Column("log_tail", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("wall_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trial")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_trial_study_id_number")),
        sa.UniqueConstraint(
            *("study_id", "candidate_id", "rung", "replicate", "train_steps"),
            name=op.f("uq_trial_study_id_candidate_id_rung_replicate_train_steps"),
        ),
        sa.CheckConstraint(
            "number >= 1 AND replicate >= 0 AND train_steps >= 0 AND attempts >= 0",
            name=op.f("ck_trial_counts"),
        ),
        sa.CheckConstraint("wall_s >= 0", name=op.f("ck_trial_times")),
        sa.CheckConstraint(
            "(state = 'finished') = (outcome IS NOT NULL)", name=op.f("ck_trial_finished_outcome")
        ),
        sa.CheckConstraint(
            "(state = 'finished') = (finished_at IS NOT NULL)", name=op.f("ck_trial_finished_at")
        ),
        sa.CheckConstraint("state <> 'running' OR attempts >= 1", name=op.f("ck_trial_attempted")),
        sa.UniqueConstraint("ulid", name=op.f("uq_trial_ulid")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_trial_study_id")),
        sa.CheckConstraint("rung IN ('probe', 'train')", name=op.f("ck_trial_rung")),
        sa.CheckConstraint(f"state IN ({TRIAL_STATES})", name=op.f("ck_trial_state")),
        sa.CheckConstraint(f"outcome IN ({OUTCOMES})", name=op.f("ck_trial_outcome")),
    )


def create_attempt() -> None:
    """One row a try at a trial; one live try at most."""
    op.create_table(
        "attempt",
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("fence", name=op.f("pk_attempt")),
        sa.UniqueConstraint("trial_id", "number", name=op.f("uq_attempt_trial_id_number")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_attempt_number")),
        sa.CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name=op.f("ck_attempt_ended")),
        sa.ForeignKeyConstraint(["trial_id"], ["trial.id"], name=op.f("fk_attempt_trial_id")),
        sa.CheckConstraint(f"outcome IN ({OUTCOMES})", name=op.f("ck_attempt_outcome")),
        sqlite_autoincrement=True,
    )
    live = sa.text("outcome IS NULL")
    op.create_index(
        "uq_attempt_live", "attempt", ["trial_id"], unique=True, sqlite_where=live, postgresql_where=live
    )


def create_device_lease() -> None:
    """One row a device in use."""
    op.create_table(
        "device_lease",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_device_lease")),
        sa.ForeignKeyConstraint(["fence"], ["attempt.fence"], name=op.f("fk_device_lease_fence")),
    )
    op.create_index(op.f("ix_device_lease_fence"), "device_lease", ["fence"])


def create_event() -> None:
    """One row a line of a study's history."""
    op.create_table(
        "event",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("study_id", "seq", name=op.f("pk_event")),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_event_seq")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_event_study_id")),
    )


def create_recommendation() -> None:
    """One row a study that succeeded."""
    op.create_table(
        "recommendation",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("snapshot", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_recommendation")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_recommendation_study_id")),
    )
