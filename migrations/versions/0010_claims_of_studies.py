"""Studies are claimed for a while, as attempts are; trials are found by the estimate that they had.

Of a study that was running it is not known who runs it: its claim is over at once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add columns to studies, and an index; every row is kept."""
    with op.batch_alter_table("study") as batch:
        batch.add_column(sa.Column("fence", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("worker", sa.String(), nullable=True))
        batch.add_column(sa.Column("place", sa.String(), nullable=True))
        batch.add_column(sa.Column("reserved_for", sa.String(), nullable=True))
        batch.add_column(sa.Column("environment", sa.String(64), nullable=True))
        batch.add_column(sa.Column("boot_id", sa.String(), nullable=True))
        batch.add_column(sa.Column("lease_until", sa.Float(), nullable=True))
    op.execute("UPDATE study SET fence = 1, boot_id = '', lease_until = 0 WHERE state = 'running'")
    with op.batch_alter_table("study") as batch:
        batch.alter_column("fence", server_default=None)
        batch.create_check_constraint(
            op.f("ck_study_leased"), "(state = 'running') = (lease_until IS NOT NULL)"
        )
        batch.create_check_constraint(op.f("ck_study_lease"), "(boot_id IS NULL) = (lease_until IS NULL)")
        batch.create_check_constraint(op.f("ck_study_claimed"), "state <> 'running' OR fence >= 1")
    op.create_index(op.f("ix_trial_estimate_id"), "trial", ["estimate_id"])
