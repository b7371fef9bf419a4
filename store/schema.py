"""The schema's version: reading it, and bringing a database to the newest.

Versions are the numbered files of ``rankwise.migrations.versions``. Alembic, slow to import, is loaded only
where there is something to change.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, String, column, inspect, select, table

from ..errors import StoreError
from .backends import backend_of, database_url, described, trouble_reported

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "rankwise_version"
"""Where Alembic notes the version. Its usual name would not tell our databases from others'."""


@cache
def known_versions() -> tuple[str, ...]:
    """All schema versions, oldest first: ``0001`` for ``0001_first_schema.py``."""
    files = resources.files("rankwise.migrations.versions").iterdir()
    return tuple(sorted(file.name[:4] for file in files if file.name[:4].isdigit()))


def stored_version(connection: Connection) -> str | None:
    """The version of the database, None for an empty one.

    Raises:
        StoreError: it belongs to another program, or to a newer rankwise.
    """
    names = inspect(connection).get_table_names()
    if not names:
        return None
    place = described(connection.engine.url)
    if VERSION_TABLE not in names:
        raise StoreError(
            f"{place} is not a database of rankwise: it holds the tables {', '.join(names[:5])}",
            next_step="set RANKWISE_HOME (or RANKWISE_DATABASE_URL) to a place of its own",
        )
    query = select(column("version_num", String)).select_from(table(VERSION_TABLE))
    version = connection.scalars(query).one()
    if version not in known_versions():
        raise StoreError(
            f"{place} has schema version {version}, this rankwise knows up to {known_versions()[-1]}: "
            "a newer rankwise wrote it",
            next_step="run `pip install --upgrade rankwise`",
        )
    return version


def upgrade(url_or_path: Path | str) -> tuple[str | None, str]:
    """Create or upgrade a database. Returns its version before (None: there was none) and now.

    Raises:
        StoreError: it is newer than this rankwise, of another program, or unusable. It is unchanged.
    """
    url = database_url(url_or_path)
    engine = backend_of(url).connect_engine(url)
    try:
        with trouble_reported(engine):
            return bring_up_to_date(engine)
    finally:
        engine.dispose()


def check(url_or_path: Path | str) -> tuple[str | None, list[str]]:
    """Look whether a database is whole. Returns its version (None: it is empty), and what is wrong with it.

    Raises:
        StoreError: it is newer than this rankwise, of another program, or cannot be read at all.
    """
    url = database_url(url_or_path)
    backend = backend_of(url)
    engine = backend.connect_engine(url)
    try:
        with trouble_reported(engine), backend.for_reads(engine).connect() as connection:
            version = stored_version(connection)
            found = backend.check(connection)
    finally:
        engine.dispose()
    if version not in (None, known_versions()[-1]):
        found.append(f"schema version {version} is older than {known_versions()[-1]}: `rankwise db upgrade`")
    return version, found


def bring_up_to_date(engine: Engine) -> tuple[str | None, str]:
    """Create or upgrade the schema; do nothing where it is current. Returns the old and the new version.

    Safe when several processes do it at once: one changes, the others wait and find it done.
    """
    newest = known_versions()[-1]
    with engine.connect() as connection:
        version = stored_version(connection)
    if version == newest:
        return version, newest

    from alembic import command

    backend = backend_of(engine)
    backend.before_upgrade(engine)
    with backend.for_writes(engine).connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return version, newest


def alembic_config() -> Config:
    """What Alembic's commands need to know, instead of an ini file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "rankwise:migrations")
    config.set_main_option("path_separator", "os")
    return config
