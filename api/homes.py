"""The home to work in: ``RANKWISE_HOME`` itself, or a folder of this node where that is shared with others.

On a file system that several machines have mounted, locks do not hold between them, and a database of SQLite
is lost sooner or later. So it is copied to a disk of the node, worked on there, and saved back: every minute,
at the end, and when the work is stopped. A lease in the home lets one node at a time do so; processes of one
node share the copy. Knows nothing of studies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ..errors import Conflict, InputError, RankwiseError
from ..home import Home
from ..probes.mounts import file_system_of, is_shared
from ..store.copying import carry_in, carry_out

VARIABLE = "RANKWISE_LOCAL"
OFF = "off"
BEAT_S = 15.0
STALE_S = 90.0
"""A lease that nobody renewed for so long is that of a node that is gone."""
SAVE_EVERY_S = 60.0
POLL_S = 2.0
MOST_LOG_BYTES = 16 * 2**20
LEASE = "in-use.json"
DATABASE = "rankwise.db"
BASE = "base.json"

Say = Callable[[str], None]


def folder_of(home: Home) -> Path | None:
    """Where the home is to be worked in on this node; None where that is the home itself.

    Raises:
        InputError: the home is shared, and no folder of this node was found.
    """
    named = os.environ.get(VARIABLE, "")
    if named == OFF or home.database_url or (not named and not is_shared(home.root)):
        return None
    usual = (os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), tempfile.gettempdir(), "/var/tmp")  # noqa: S108
    places = [named] if named else [place for place in usual if place]
    for place in map(Path, places):
        if place.is_dir() and not is_shared(place):
            name = hashlib.sha256(str(home.root).encode()).hexdigest()[:12]
            return place.resolve() / f"rankwise-{os.getuid()}-{name}"
    kind = file_system_of(home.root) or "a shared file system"
    where = f"{named} is no folder on a disk of this node" if named else "no disk of this node was found"
    raise InputError(
        f"the home {home.root} lies on {kind}, where no database is safe, and {where}",
        next_step=f"set {VARIABLE} to a folder on a disk of this node",
    )


@contextmanager
def working_home(home: Home, say: Say = lambda _sentence: None) -> Iterator[Home]:
    """The home to write to, for as long as the block lasts; what was written is saved after it.

    Args:
        home: that was asked for.
        say: told in sentences why nothing happens yet, and what became of the database.

    Raises:
        InputError: there is no place to work in.
        Conflict: another node works in this home.
        StoreError: the database cannot be copied.
    """
    folder = folder_of(home)
    if folder is None:
        yield home
        return
    copy = _Copy(home, folder, say)
    copy.open()
    try:
        yield copy.local
    finally:
        copy.close()


def readable_home(home: Home, say: Say = lambda _sentence: None) -> Home:
    """The home to read from: as it was saved last, or as this node works on it.

    Raises:
        InputError: as for :func:`working_home`.
        StoreError: as for :func:`working_home`.
    """
    folder = folder_of(home)
    if folder is None:
        return home
    copy = _Copy(home, folder, say)
    copy.open_to_read()
    return copy.local


class _Copy:
    """A home's database on a disk of this node."""

    def __init__(self, home: Home, folder: Path, say: Say) -> None:
        self.home = home.create()
        _make_private(folder)
        self.local = replace(home, root=folder).create()
        self._say = say
        self._lease = _Lease(self.home.root / LEASE, str(folder), say)
        self._saved = self.home.root / DATABASE
        self._database = folder / DATABASE
        self._users = (folder / "users.lock").open("ab")
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="saving", daemon=True)

    def open(self) -> None:
        """Take the home for this node, unless another of its processes has it already, and copy."""
        try:
            self._take()
        except BaseException:
            self._users.close()
            raise
        self._say(f"{self.home.root} is shared with other machines: working in {self.local.root}")
        self._keeper.start()

    def _take(self) -> None:
        with self._one_at_a_time():
            if _lock(self._users, fcntl.LOCK_EX):
                self._lease.take()
                try:
                    self._bring()
                    self._write_base(is_saved=False)
                except BaseException:
                    self._lease.give_back()
                    raise
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self._lease.read_own()

    def open_to_read(self) -> None:
        """Copy what was saved last, unless somebody here has the database in hand."""
        with self._one_at_a_time():
            if _lock(self._users, fcntl.LOCK_EX):
                self._bring()
        self._users.close()

    def close(self) -> None:
        """Save, and let the home go if nobody else here works in it."""
        self._stopping.set()
        self._keeper.join()
        with self._one_at_a_time():
            is_saved = self._save()
            fcntl.flock(self._users, fcntl.LOCK_UN)
            if _lock(self._users, fcntl.LOCK_EX):
                if is_saved:
                    self._write_base(is_saved=True)
                self._copy_logs()
                self._lease.give_back()
        self._users.close()

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Processes of this node open and close one after the other."""
        with (self.local.root / "state.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _bring(self) -> None:
        """Have here what the home has; what only this node has is never thrown away."""
        base, found = self._read_base(), _identity(self._saved)
        is_saved = bool(base.get("is_saved"))
        if found is not None and base.get("identity") != found:
            if self._database.exists() and not is_saved:
                aside = self._database.with_name(f"{DATABASE}.{time.strftime('%Y%m%dT%H%M%S')}.aside")
                carry_out(self._database, aside)
                self._say(f"another node went on with {self._saved}; what was not saved here is in {aside}")
            carry_in(self._saved, self._database)
            is_saved = True
        elif found is None and is_saved:
            self._database.unlink(missing_ok=True)  # it was removed from the home
        self._write_base(is_saved=is_saved)

    def _keep(self) -> None:
        """Renew the lease, and save what was written since."""
        saved_at, seen = time.monotonic(), self._version()
        while not self._stopping.wait(BEAT_S):
            with suppress(OSError):
                self._lease.renew()
            if time.monotonic() - saved_at >= SAVE_EVERY_S and (now := self._version()) != seen:
                with self._one_at_a_time():
                    self._save()
                saved_at, seen = time.monotonic(), now

    def _save(self) -> bool:
        """Into the home, if it still is ours, else beside; whether the home has it."""
        if not self._database.exists():
            return True
        target = self._saved
        if not self._lease.is_ours():
            target = target.with_name(f"{DATABASE}.{socket.gethostname()}-{os.getpid()}.aside")
        try:
            carry_out(self._database, target)
        except RankwiseError as error:
            self._say(str(error))
            return False
        if target is self._saved:
            self._write_base(is_saved=False)
            return True
        self._say(f"another node took {self.home.root} over; what was done here is saved in {target}")
        return False

    def _copy_logs(self) -> None:
        for log in self.local.logs.glob("*.log"):
            with suppress(OSError):
                if log.stat().st_size <= MOST_LOG_BYTES:
                    shutil.copyfile(log, self.home.logs / log.name)

    def _version(self) -> tuple[Any, ...]:
        """Changes with every write."""
        names = (DATABASE, f"{DATABASE}-wal")
        return tuple(_identity(self.local.root / name) for name in names)

    def _read_base(self) -> dict[str, Any]:
        try:
            found = json.loads((self.local.root / BASE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_base(self, *, is_saved: bool) -> None:
        """Which state of the home the copy here goes back to."""
        base = {"identity": _identity(self._saved), "is_saved": is_saved}
        arriving = self.local.root / f".{BASE}"
        arriving.write_text(json.dumps(base), encoding="utf-8")
        arriving.replace(self.local.root / BASE)


class _Lease:
    """A file in the home that says which node works in it, and is touched as long as it does."""

    def __init__(self, path: Path, folder: str, say: Say) -> None:
        self._path = path
        self._place = {"host": socket.gethostname(), "folder": folder}
        self._token: str | None = None
        self._say = say

    def take(self) -> None:
        """Wait until the home is free, or its holder gone, and take it.

        Raises:
            Conflict: another node goes on holding it.
        """
        began, told = time.monotonic(), False
        while not self._create():
            holder, age_s = self._read(), self._age_s()
            is_of_this_node = holder.get("place") == self._place  # whose processes are gone: we have the lock
            if is_of_this_node or (age_s is not None and age_s > STALE_S):
                self._break()
                continue
            where = f"{holder.get('place', {}).get('host', 'another node')}"
            job = f", job {holder['job']}" if holder.get("job") else ""
            if time.monotonic() - began > STALE_S + BEAT_S:
                raise Conflict(
                    f"{self._path.parent} is in use on {where}{job}",
                    next_step="wait for it to end, or give each job a RANKWISE_HOME of its own",
                )
            if not told:
                told = True
                self._say(f"{self._path.parent} is in use on {where}{job}: waiting for it to end")
            time.sleep(POLL_S)

    def read_own(self) -> None:
        """Join what another process of this node took."""
        if self._token is None:
            self._token = self._read().get("token")

    def is_ours(self) -> bool:
        """Nobody took it over meanwhile."""
        return self._token is not None and self._read().get("token") == self._token

    def renew(self) -> None:
        """Say that we are still here."""
        if self.is_ours():
            os.utime(self._path)

    def give_back(self) -> None:
        """Let others have it."""
        if self.is_ours():
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        token = secrets.token_hex(8)
        content = {"token": token, "place": self._place, "job": os.environ.get("SLURM_JOB_ID")}
        try:
            number = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        self._token = token
        return True

    def _break(self) -> None:
        """Only one of several that wait gets to rename it."""
        aside = self._path.with_name(f".{LEASE}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            aside.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _age_s(self) -> float | None:
        """By the clock of the file server: those of nodes differ."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=".now-") as now:
                return os.fstat(now.fileno()).st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return None


def _identity(path: Path) -> list[int] | None:
    """Another one after every change; None of what does not exist."""
    try:
        with path.open("rb") as file:  # opening asks the file server, looking asks a cache
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _lock(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_private(folder: Path) -> None:
    """A folder that nobody else can have put there, in a place where everybody may.

    Raises:
        InputError: somebody did, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made: {error.strerror or error}",
            next_step=f"set {VARIABLE} to a folder of yours on a disk of this node",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(
            f"{folder} is not a folder of yours alone",
            next_step=f"remove it, or set {VARIABLE} to a folder of yours on a disk of this node",
        )
