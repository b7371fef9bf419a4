"""What studies and trials are searched and sorted by, in columns of their own with indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

STUDY = sa.table("study", sa.column("request", sa.JSON()), sa.column("model"), sa.column("dataset"))
TRIAL = sa.table(
    "trial",
    sa.column("measurement", sa.JSON()),
    sa.column("speed"),
    sa.column("memory_bytes"),
    sa.column("loss"),
)


def upgrade() -> None:
    """Add the columns and fill them from the documents."""
    with op.batch_alter_table("study") as batch:
        batch.add_column(sa.Column("model", sa.String(), nullable=True))
        batch.add_column(sa.Column("dataset", sa.String(), nullable=True))
    request = STUDY.c.request
    op.execute(
        STUDY.update().values(model=request["model"].as_string(), dataset=request["dataset"].as_string())
    )
    with op.batch_alter_table("study") as batch:
        batch.alter_column("model", existing_type=sa.String(), nullable=False)
        batch.alter_column("dataset", existing_type=sa.String(), nullable=False)
        batch.create_index(op.f("ix_study_named"), ["model", "dataset", "ulid"])
        for name in ("state", "created_at", "updated_at"):
            batch.create_index(op.f(f"ix_study_{name}"), [name])
    # SQLite writes an added column behind the others on one line; a rebuilt table reads as a new one does.
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table("trial", recreate="always" if is_sqlite else "auto") as batch:
        batch.add_column(sa.Column("speed", sa.Float(), nullable=True))
        batch.add_column(sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
        batch.add_column(sa.Column("loss", sa.Float(), nullable=True))
    op.execute(
        TRIAL.update()
        .where(TRIAL.c.measurement.is_not(None))
        .values(
            speed=_first("tokens_per_s", "samples_per_s", kind=sa.Float()),
            memory_bytes=_first(
                "peak_device_bytes", "peak_reserved_bytes", "peak_process_bytes", kind=sa.BigInteger()
            ),
            loss=_first("own_loss", "heldout_loss", kind=sa.Float()),
        )
    )
    for name in ("state", "speed", "memory_bytes", "loss"):
        op.create_index(op.f(f"ix_trial_study_id_{name}"), "trial", ["study_id", name])


def _first(
    *names: str, kind: sa.types.TypeEngine[float] | sa.types.TypeEngine[int]
) -> sa.ColumnElement[object]:
    """The first of these figures of a measurement that there is."""
    return sa.func.coalesce(*(sa.cast(TRIAL.c.measurement[name].as_string(), kind) for name in names))
