"""A file of SQLite carried to another folder while it may be in use: whole, or not at all.

SQLite itself works on the near side only: the far one may be a file system on which its locks do not hold.
Knows nothing about tables.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from ..errors import StoreError
from .backends import database_url, described

BESIDE = ("-wal", "-shm")
"""What SQLite keeps beside a file that it has open."""


def carry_out(database: Path, target: Path) -> None:
    """Write what the database holds now to ``target``, in place of what was there; others may go on writing.

    Raises:
        StoreError: it cannot be read or written; ``target`` is as it was.
    """
    whole = database.with_name(f".{database.name}.{os.getpid()}.out")
    arriving = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(whole)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        _copy_synced(whole, arriving)
        for suffix in BESIDE:  # of another time: read with the new file, it would spoil it
            with suppress(FileNotFoundError):
                target.with_name(target.name + suffix).rename(f"{target}{suffix}.aside")
        arriving.replace(target)
        _sync_folder(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"the database {database} cannot be saved to {target}: {error}",
            next_step=f"check that {target.parent} is writable and has space; {database} has everything",
        ) from error
    finally:
        for path in (whole, arriving):
            with suppress(OSError):
                path.unlink()


def snapshot(address: Path | str, target: Path) -> None:
    """Write what the database holds now to a file, while it may be in use.

    Raises:
        StoreError: it cannot be read or written, or is no file of SQLite.
    """
    url = database_url(address)
    if url.get_backend_name() != "sqlite":
        place = described(url)
        raise StoreError(
            f"{place} is not a file: its server has programs of its own for that",
            next_step=f"run `pg_dump --format=custom --file {target} {place}`, and pg_restore to restore it",
        )
    database = Path(str(url.database))
    if not database.exists():
        raise StoreError(f"there is no database at {database}", next_step="check RANKWISE_HOME")
    carry_out(database, target)


def carry_in(source: Path, database: Path) -> None:
    """Put a copy of ``source``, which nobody writes to, where the database is to be.

    Raises:
        StoreError: it cannot be read, or not be written here.
    """
    arriving = database.with_name(f".{database.name}.{os.getpid()}.in")
    try:
        for suffix in BESIDE:
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        log = source.with_name(f"{source.name}-wal")
        _copy_synced(source, arriving)
        if log.exists():  # left by a process that was killed: part of the content
            shutil.copyfile(log, database.with_name(f"{database.name}-wal"))
        arriving.replace(database)
    except OSError as error:
        raise StoreError(
            f"the database {source} cannot be copied to {database}: {error.strerror or error}",
            next_step="see that both folders can be used and that there is space, or set RANKWISE_LOCAL",
        ) from error
    finally:
        with suppress(OSError):
            arriving.unlink(missing_ok=True)


def _copy_synced(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        os.fchmod(write.fileno(), 0o600)
        shutil.copyfileobj(read, write, 2**20)
        write.flush()
        os.fsync(write.fileno())


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
