"""Everything that is particular to SQLite: how to connect, begin, and set foreign keys aside.

The rest of the store is portable SQLAlchemy. Knows nothing about tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, IntegrityError, ProgrammingError
from sqlalchemy.pool import ConnectionPoolEntry

from ..errors import StoreError

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for another process's; ours take milliseconds."""

_WRITES = "rankwise_writes"


def sqlite_url(url_or_path: Path | str) -> URL:
    """The database's URL. A string without ``://`` is a path.

    Raises:
        StoreError: for any other database, and for one in memory, which processes cannot share.
    """
    if isinstance(url_or_path, str) and "://" in url_or_path:
        url = make_url(url_or_path)
    else:
        url = URL.create("sqlite", database=str(url_or_path))
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise StoreError(
            f"cannot use the database {url.render_as_string()}: only files of SQLite are supported",
            next_step="pass a path, or sqlite:///PATH",
        )
    return url


def connect_engine(url: URL) -> Engine:
    """An engine whose transactions really begin when they are begun.

    The standard driver begins by itself, late and always deferred: a transaction that reads before it writes
    can then lose a race that no waiting resolves (SQLITE_BUSY at once). So its own transactions are turned
    off (``isolation_level=None``) and BEGIN is sent from the engine's hook.
    """
    engine = create_engine(
        url,
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S},
        json_serializer=partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def for_writes(engine: Engine) -> Engine:
    """The same engine, its transactions begun with BEGIN IMMEDIATE."""
    return engine.execution_options(**{_WRITES: True})


def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def switch_to_wal(engine: Engine) -> None:
    """Readers and the writer no longer wait for each other. Kept in the file, so once is enough."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


@contextmanager
def foreign_keys_set_aside(connection: Connection) -> Iterator[None]:
    """Foreign keys are off inside, which must hold the whole transaction, and checked before it ends.

    Rebuilding a table drops the old one, and with foreign keys on SQLite then deletes the rows that refer
    to it. The switch does nothing inside a transaction, hence the driver's own connection.

    Raises:
        StoreError: the changes left rows that refer to nothing; they are rolled back.
    """
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        with connection.begin():
            yield
            if orphans := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                tables = ", ".join(sorted({row[0] for row in orphans}))
                raise StoreError(
                    f"the upgrade would leave {len(orphans)} rows that refer to nothing, in {tables}",
                    next_step="the database is unchanged; please report this",
                )
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


@contextmanager
def trouble_reported(engine: Engine) -> Iterator[None]:
    """Turn the driver's "locked", "disk full" or "not a database" into StoreError.

    What only a mistake of ours can cause (a constraint, a statement) goes through as it is.
    """
    try:
        yield
    except (IntegrityError, ProgrammingError):
        raise
    except DatabaseError as error:
        raise StoreError(
            f"the database {engine.url.database} cannot be used: {error.orig}",
            next_step="check that it is writable, that its disk has space and that no other program holds it",
        ) from error
