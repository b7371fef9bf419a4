"""What dry runs tell of shapes, and which trial measured a shape that something had been told of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add a table, and a column to trials: of those from before nothing had been told."""
    op.create_table(
        "estimate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("shape_key", sa.String(64), nullable=False),
        sa.Column("candidate", sa.JSON(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("estimate", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_estimate")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_estimate_study_id")),
        sa.UniqueConstraint("study_id", "shape_key", name=op.f("uq_estimate_study_id_shape_key")),
    )
    op.create_index(op.f("ix_estimate_device"), "estimate", ["device"])
    with op.batch_alter_table("trial") as batch:
        batch.add_column(sa.Column("estimate_id", sa.Integer(), nullable=True))
        batch.create_foreign_key(op.f("fk_trial_estimate_id"), "estimate", ["estimate_id"], ["id"])
