"""Everything that is particular to PostgreSQL: how to connect, begin, wait, and say what is wrong.

The rest of the store is portable SQLAlchemy. Knows nothing about tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from ..errors import StoreError
from .clock import Clock, Moment

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 30.0
"""How long a statement waits for another process's transaction; ours take milliseconds."""
IDLE_TIMEOUT_S = 30.0
"""A transaction whose process does nothing for so long, stopped or cut off, is rolled back."""

CLOCK_ID = "postgresql"
"""In place of a boot's id: the server's clock goes on through its restarts."""

_UPGRADE_LOCK = 0x72616E6B77697365
"""``rankwise`` as eight bytes: the advisory lock that an upgrade holds."""


class ServerClock:
    """The database server's clock: the one that all machines which share it have in common."""

    def now(self, transaction: Session | Connection) -> Moment:
        """Asked in the transaction; what it waited for before has passed."""
        utc = transaction.execute(text("SELECT clock_timestamp()")).scalar_one()
        return Moment(utc.astimezone(UTC), CLOCK_ID, utc.timestamp())


def default_clock() -> Clock:
    """The clock of a store whose tests have none of their own."""
    return ServerClock()


def described(url: URL) -> str:
    """The database for people: no password, nor anything else that a URL may carry behind the name."""
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)


def connect_engine(url: URL) -> Engine:
    """An engine that notices connections which the server has dropped before it uses one.

    Raises:
        StoreError: the driver is not installed.
    """
    try:
        import psycopg
    except ModuleNotFoundError as error:
        raise StoreError(
            f"the database {described(url)} cannot be used: psycopg is not installed",
            next_step="run `pip install 'rankwise[postgres]'`",
        ) from error

    class WithoutNul(psycopg.types.string.StrDumper):
        """PostgreSQL's texts hold no NUL; what trials print may."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in obj else obj)

    def configure(connection: psycopg.Connection[Any], _: object) -> None:
        connection.adapters.register_dumper(str, WithoutNul)
        with connection.cursor() as cursor:
            for setting, seconds in (
                ("lock_timeout", LOCK_TIMEOUT_S),
                ("idle_in_transaction_session_timeout", IDLE_TIMEOUT_S),
            ):
                cursor.execute("SELECT set_config(%s, %s, false)", (setting, f"{seconds:.0f}s"))
        connection.commit()

    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "rankwise"},
        json_serializer=partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
        pool_pre_ping=True,
    )
    event.listen(engine, "connect", configure)
    return engine


def for_reads(engine: Engine) -> Engine:
    """The same engine, its transactions seeing one state of the database throughout."""
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def for_writes(engine: Engine) -> Engine:
    """The same engine: writers lock the rows that they depend on, and see what others committed before."""
    return engine.execution_options(isolation_level="READ COMMITTED")


def before_upgrade(_: Engine) -> None:
    """Nothing is to be switched on."""


@contextmanager
def upgrading(connection: Connection) -> Iterator[None]:
    """A transaction that no other upgrade comes between: its definitions are rolled back with it."""
    with connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        yield


def check(connection: Connection) -> list[str]:
    """What is wrong with the database: nothing that the server would not have said by itself."""
    connection.execute(text("SELECT 1"))
    return []


def trouble(error: DatabaseError, url: URL) -> StoreError | None:
    """The driver's error in our words; None for what only a mistake of ours can cause."""
    import psycopg

    cause = error.orig
    if isinstance(cause, psycopg.errors.IntegrityError) or (
        isinstance(cause, psycopg.ProgrammingError)
        and not isinstance(cause, psycopg.errors.InsufficientPrivilege)
    ):
        return None
    said = " ".join(str(cause).split())
    return StoreError(f"the database {described(url)} cannot be used: {said}", next_step=_next_step(said))


def _next_step(said: str) -> str:
    """What helps against it. Failed connections have no SQLSTATE: what the server said is all there is."""
    steps = {
        "authentication failed": "check the user and the password in RANKWISE_DATABASE_URL",
        "no password supplied": "put the password into RANKWISE_DATABASE_URL, or into ~/.pgpass",
        "no pg_hba.conf entry": "allow this host and user in the server's pg_hba.conf",
        '" does not exist': "create what is missing: a role with `createuser`, a database with `createdb`",
        "permission denied": "grant the user of RANKWISE_DATABASE_URL all rights on the database's schema",
        "No space left": "make space on the server's disk; nothing that was stored is lost",
        "too many": "let the server accept more connections (max_connections), or run fewer of ours",
        "lock timeout": "find who holds the lock in pg_stat_activity, and try again",
    }
    found = next((step for words, step in steps.items() if words in said), None)
    return found or "check that the server runs and that RANKWISE_DATABASE_URL names it"
