"""Which database is behind an address, and which module knows what is particular to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import StoreError
from . import postgresql, sqlite
from .clock import Clock


class Backend(Protocol):
    """What ``sqlite.py`` and ``postgresql.py`` each know."""

    def described(self, url: URL) -> str:
        """The database for people, without a password."""
        ...

    def default_clock(self) -> Clock:
        """The clock that times leases there."""
        ...

    def connect_engine(self, url: URL) -> Engine:
        """An engine whose transactions begin when they are begun."""
        ...

    def for_reads(self, engine: Engine) -> Engine:
        """The same engine, its transactions seeing one state throughout."""
        ...

    def for_writes(self, engine: Engine) -> Engine:
        """The same engine, its transactions fit to write."""
        ...

    def before_upgrade(self, engine: Engine) -> None:
        """What cannot be done inside an upgrade's transaction."""
        ...

    def upgrading(self, connection: Connection) -> AbstractContextManager[None]:
        """The transaction of an upgrade: no other comes between, all of it happens or nothing."""
        ...

    def check(self, connection: Connection) -> list[str]:
        """What is wrong with the database's own structure, in its words."""
        ...

    def trouble(self, error: DatabaseError, url: URL) -> StoreError | None:
        """The driver's error in our words; None for what only a mistake of ours can cause."""
        ...


_BACKENDS: dict[str, Backend] = {"sqlite": sqlite, "postgresql": postgresql}


def database_url(url_or_path: Path | str) -> URL:
    """The database's URL. A string without ``://`` is a path.

    Raises:
        StoreError: it cannot be read, names another kind of database, or one in memory, which processes
            cannot share.
    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        url = make_url(url_or_path)
    except (ArgumentError, ValueError) as error:
        raise StoreError(  # without the value: a password may stand in it
            "RANKWISE_DATABASE_URL cannot be read", next_step="write it as postgresql://USER@HOST:5432/NAME"
        ) from error
    kind = url.get_backend_name()
    if kind == "postgres":  # as some hosts still write it
        url, kind = url.set(drivername="postgresql"), "postgresql"
    if kind not in _BACKENDS or (kind == "sqlite" and url.database in (None, "", ":memory:")):
        raise StoreError(
            f"cannot use a database of {kind}: only files of SQLite and PostgreSQL are supported",
            next_step="pass a path, sqlite:///PATH, or postgresql://USER@HOST:5432/NAME",
        )
    return url


def backend_of(engine_or_url: Engine | URL) -> Backend:
    """What knows the database behind an engine."""
    url = engine_or_url if isinstance(engine_or_url, URL) else engine_or_url.url
    return _BACKENDS[url.get_backend_name()]


def described(url_or_path: Path | str | URL) -> str:
    """The database for people: a path, or a URL without its password."""
    url = url_or_path if isinstance(url_or_path, URL) else database_url(url_or_path)
    return backend_of(url).described(url)


@contextmanager
def trouble_reported(engine: Engine) -> Iterator[None]:
    """Turn the driver's "locked", "disk full", "connection refused" or "not a database" into StoreError.

    What only a mistake of ours can cause (a constraint, a statement) goes through as it is.
    """
    try:
        yield
    except DatabaseError as error:
        if trouble := backend_of(engine).trouble(error, engine.url):
            raise trouble from error
        raise
    except PoolTimeout as error:
        raise StoreError(
            f"the database {described(engine.url)} is busy: every connection of this process is in use",
            next_step="try again in a moment",
        ) from error
