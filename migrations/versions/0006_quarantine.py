"""Devices that no trial is started on, with the reason."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add a table: nothing was known to be wrong with any device."""
    op.create_table(
        "quarantine",
        sa.Column("device", sa.String(length=80), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("baseline_bytes", sa.BigInteger(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_quarantine")),
        sa.CheckConstraint("baseline_bytes >= 0", name=op.f("ck_quarantine_baseline")),
    )
