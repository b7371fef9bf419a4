"""An index that answers how many trials there are of each kind and how long they took."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add it."""
    op.create_index(op.f("ix_trial_totals"), "trial", ["state", "outcome", "rung", "wall_s"])
