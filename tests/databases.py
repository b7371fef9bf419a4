"""Databases of PostgreSQL for tests, on a server that is found or started.

Looked for in this order: ``RANKWISE_TEST_POSTGRES_URL``, whose user may create databases; a server on port
5432 of this machine that trusts us; one that is started in a temporary folder, where binaries are installed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from rankwise.store.tables import Row

HOW_TO_HAVE_ONE = (
    "no PostgreSQL: set RANKWISE_TEST_POSTGRES_URL to a server whose user may create databases, let one on "
    "127.0.0.1:5432 trust local users, or install PostgreSQL's binaries (initdb, pg_ctl)"
)

START_S = 60


@dataclass(frozen=True)
class PostgresServer:
    """A server on which databases can be created and dropped."""

    url: str
    """Of a database that is there already."""

    def execute(self, statement: str) -> None:
        """Outside any transaction, as databases are created."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def url_of(self, name: str) -> str:
        """The same server, another database."""
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database, which is dropped in the end whoever is still connected."""
        name = f"rankwise_test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            self.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
            yield self.url_of(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def empty_tables(url: str) -> None:
    """Take all rows out of a database of ours, and begin to count anew: sooner done than a new one."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = sql.SQL(", ").join(map(sql.Identifier, Row.metadata.tables))
        connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))


@contextmanager
def running_server(folder: Path) -> Iterator[PostgresServer | None]:
    """A server, for as long as it is needed; None where there is none to be had."""
    if given := os.environ.get("RANKWISE_TEST_POSTGRES_URL"):
        psycopg.connect(given).close()  # what was asked for and does not work is no reason to skip
        yield PostgresServer(given)
    elif local := trusting_server():
        yield local
    elif binaries := find_binaries():
        with started_server(binaries, folder) as started:
            yield started
    else:
        yield None


def trusting_server() -> PostgresServer | None:
    """The one on the usual port, if it lets us in without a password and create databases."""
    for user in (pwd.getpwuid(os.getuid()).pw_name, "postgres"):
        url = f"postgresql://{user}@127.0.0.1:5432/postgres"
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
                row = connection.execute(query).fetchone()
        except psycopg.OperationalError:
            continue
        if row == (True,):
            return PostgresServer(url)
    return None


def find_binaries() -> Path | None:
    """The folder of initdb and pg_ctl: on the path, or the newest where Debian and Red Hat put them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    usable = [place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()]
    return max(usable, key=lambda place: float(place.parent.name.removeprefix("pgsql-")), default=None)


@contextmanager
def started_server(binaries: Path, folder: Path) -> Iterator[PostgresServer]:
    """A server of our own on a free port. It refuses to run as root: then it runs as somebody else."""
    user = None
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        for parent in (folder, *folder.parents[:-2]):
            parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"

    def run(*command: str | Path) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True, timeout=START_S)

    run(binaries / "initdb", "--pgdata", data, "--username", "postgres", "--auth", "trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    pg_ctl = (binaries / "pg_ctl", "--pgdata", data, "--wait")
    run(*pg_ctl, "--log", folder / "log", "--options", options, "start")
    try:
        yield PostgresServer(f"postgresql://postgres@127.0.0.1:{port}/postgres")
    finally:
        run(*pg_ctl, "--mode", "immediate", "stop")
