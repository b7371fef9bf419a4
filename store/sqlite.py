"""Everything that is particular to SQLite: how to connect, begin, and set foreign keys aside.

The rest of the store is portable SQLAlchemy. Knows nothing about tables.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.pool import ConnectionPoolEntry

from ..errors import StoreError
from .clock import Clock, SystemClock

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for another process's; ours take milliseconds."""

_WRITES = "rankwise_writes"
_WAL = "PRAGMA journal_mode = WAL"


def default_clock() -> Clock:
    """The machine's own: all processes that use the file are on it."""
    return SystemClock()


def described(url: URL) -> str:
    """The file's path."""
    return str(url.database)


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


def for_reads(engine: Engine) -> Engine:
    """The same engine: a transaction sees one state of the database throughout."""
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


def before_upgrade(engine: Engine) -> None:
    """Switch to a write-ahead log: readers and the writer no longer wait for each other. Kept in the file."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute(_WAL)
    except sqlite3.DatabaseError as error:  # past SQLAlchemy, which would have begun a transaction
        raise OperationalError(_WAL, None, error) from error
    finally:
        connection.close()


@contextmanager
def upgrading(connection: Connection) -> Iterator[None]:
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


def check(connection: Connection) -> list[str]:
    """What SQLite finds wrong with the file, and rows that refer to nothing."""
    found = [str(line) for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars()]
    orphans = {row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}
    return [line for line in found if line != "ok"] + [
        f"rows of {name} refer to nothing" for name in sorted(orphans)
    ]


def trouble(error: DatabaseError, url: URL) -> StoreError | None:
    """The driver's error in our words; None for what only a mistake of ours can cause."""
    if isinstance(error, IntegrityError | ProgrammingError):
        return None
    return StoreError(
        f"the database {described(url)} cannot be used: {error.orig}",
        next_step="check that it is writable, that its disk has space and that no other program holds it",
    )
