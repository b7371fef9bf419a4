"""Which addresses are told of which studies, and up to which event they were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "webhook",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("told", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("given_up", sa.Boolean(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_webhook_study_id")),
        sa.UniqueConstraint("study_id", "url", name=op.f("uq_webhook_study_id_url")),
        sa.CheckConstraint("told >= 0 AND failures >= 0", name=op.f("ck_webhook_counts")),
    )
    op.create_index(op.f("ix_webhook_due_at"), "webhook", ["due_at"])
