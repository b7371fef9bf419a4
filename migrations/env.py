"""Run by Alembic: applies the missing versions in one transaction, on the connection that the store passes.

A second process that starts the same upgrade waits, on SQLite at BEGIN IMMEDIATE, on PostgreSQL for an
advisory lock; Alembic reads the present version after that, and finds nothing left to do.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from rankwise.store.backends import backend_of
from rankwise.store.schema import VERSION_TABLE
from rankwise.store.tables import Row


def migrate(connection: Connection) -> None:
    """Apply the missing versions; all or nothing."""
    with backend_of(connection.engine).upgrading(connection):
        context.configure(
            connection=connection,
            target_metadata=Row.metadata,
            version_table=VERSION_TABLE,
            render_as_batch=True,
        )
        context.run_migrations()


migrate(context.config.attributes["connection"])
