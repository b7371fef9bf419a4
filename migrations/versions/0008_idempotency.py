"""Keys of requests that may arrive twice, with the studies that they made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "idempotency",
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_idempotency")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_idempotency_study_id")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"])
