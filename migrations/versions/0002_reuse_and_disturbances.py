"""Measurements are found by key and reused; attempts can be disturbed and keep their time.

A study's measured time goes: it was never filled, and follows from its trials.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

OUTCOMES = (
    "'ok', 'oom', 'host-oom', 'diverged', 'invalid', 'timeout', 'crashed', 'lost', 'cancelled', 'disturbed'"
)


def upgrade() -> None:
    """Change the tables in place; every row is kept."""
    change_study()
    change_trial()
    change_attempt()


def change_study() -> None:
    """Without ``measured_s``."""
    with op.batch_alter_table("study") as batch:
        batch.drop_constraint(op.f("ck_study_times"), type_="check")
        batch.drop_column("measured_s")
        batch.create_check_constraint(op.f("ck_study_times"), "wall_s >= 0")


def change_trial() -> None:
    """With the key of what was measured, and the trial that a measurement was taken from."""
    with op.batch_alter_table("trial") as batch:
        batch.add_column(sa.Column("measurement_key", sa.String(64), nullable=True))
        batch.add_column(sa.Column("reused_from", sa.String(26), nullable=True))
        batch.create_foreign_key(op.f("fk_trial_reused_from"), "trial", ["reused_from"], ["ulid"])
        batch.create_check_constraint(
            op.f("ck_trial_reused"),
            "reused_from IS NULL OR (state = 'finished' AND outcome = 'ok' AND measurement IS NOT NULL)",
        )
        batch.create_check_constraint(op.f("ck_trial_undisturbed"), "outcome <> 'disturbed'")
        batch.drop_constraint(op.f("ck_trial_outcome"), type_="check")
        batch.create_check_constraint(op.f("ck_trial_outcome"), f"outcome IN ({OUTCOMES})")
    op.create_index(op.f("ix_trial_measurement_key"), "trial", ["measurement_key"])


def change_attempt() -> None:
    """With its own time; the last attempt of a trial takes over what the trial has noted."""
    with op.batch_alter_table("attempt", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.add_column(sa.Column("wall_s", sa.Float(), nullable=True))
        batch.create_check_constraint(op.f("ck_attempt_times"), "wall_s >= 0")
        batch.drop_constraint(op.f("ck_attempt_outcome"), type_="check")
        batch.create_check_constraint(op.f("ck_attempt_outcome"), f"outcome IN ({OUTCOMES})")
    attempt = sa.table("attempt", sa.column("trial_id"), sa.column("number"), sa.column("wall_s"))
    trial = sa.table("trial", sa.column("id"), sa.column("attempts"), sa.column("wall_s"))
    of_last = (
        sa.select(trial.c.wall_s)
        .where(trial.c.id == attempt.c.trial_id, trial.c.attempts == attempt.c.number)
        .scalar_subquery()
    )
    op.execute(sa.update(attempt).values(wall_s=of_last))
