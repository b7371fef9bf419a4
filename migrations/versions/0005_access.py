"""Who may ask: access tokens by the digests of their secrets, browsers' sessions, and who owns a study."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add two tables, and a column to studies: those from before are nobody's."""
    op.create_table(
        "access_token",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ulid", sa.String(26), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_token")),
        sa.CheckConstraint("role IN ('reader', 'submitter', 'admin')", name=op.f("ck_access_token_role")),
        sa.UniqueConstraint("ulid", name=op.f("uq_access_token_ulid")),
        sa.UniqueConstraint("digest", name=op.f("uq_access_token_digest")),
    )
    op.create_table(
        "access_session",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_session")),
        sa.ForeignKeyConstraint(["token_id"], ["access_token.id"], name=op.f("fk_access_session_token_id")),
        sa.UniqueConstraint("digest", name=op.f("uq_access_session_digest")),
    )
    op.create_index(op.f("ix_access_session_token_id"), "access_session", ["token_id"])
    # SQLite would note an added column on the last line of the table's definition, unlike a new table's.
    recreate: Literal["always", "never"] = "always" if op.get_bind().dialect.name == "sqlite" else "never"
    with op.batch_alter_table("study", recreate=recreate) as batch:
        batch.add_column(sa.Column("owner", sa.String(64), nullable=True))
