"""What each training scored on every held-out row, so that two can be compared row by row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add a table: of trainings from before only the mean is known."""
    op.create_table(
        "heldout",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_heldout")),
        sa.ForeignKeyConstraint(["trial_id"], ["trial.id"], name=op.f("fk_heldout_trial_id")),
    )
