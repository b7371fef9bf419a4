"""What says of an estimate whether it fits, in a column of its own, and an index for studies by state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

ESTIMATE = sa.table("estimate", sa.column("estimate", sa.JSON()), sa.column("fits"))


def upgrade() -> None:
    """Add a column with what the document says, and indexes."""
    # SQLite writes an added column behind the others on one line; a rebuilt table reads as a new one does.
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table("estimate", recreate="always" if is_sqlite else "auto") as batch:
        batch.add_column(sa.Column("fits", sa.String(length=20), nullable=True))
    op.execute(ESTIMATE.update().values(fits=ESTIMATE.c.estimate["fits"].as_string()))
    op.create_index(op.f("ix_estimate_study_id_fits"), "estimate", ["study_id", "fits"])
    op.drop_index(op.f("ix_study_state"), "study")
    op.create_index(op.f("ix_study_state_updated_at"), "study", ["state", "updated_at"])
