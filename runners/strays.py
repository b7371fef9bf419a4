"""Finds and ends programs that outlived whoever started them, and no others.

Every warm server is started with a marker in its environment, which all that it forks and runs inherit. It
names the home, the server, and the owner: the process that started the server, by pid and start time. What is
left is a stray when its owner is gone, or is this process and has given the server up. Processes of other
homes, users, pid namespaces and of living owners are never touched. Knows nothing of what the processes do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..home import Home

VARIABLE = "RANKWISE_RUN"
GONE_WITHIN_S = 5.0
"""A killed process is gone at once, unless it waits for a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What a process's environment says of its origin."""

    home: str
    """Device and inode of the home: a folder may have several names, and one name mean several folders."""
    namespace: int
    """In which the pids are meant: a container's are not its host's."""
    owner_pid: int
    owner_start: int
    """In the kernel's ticks since the machine started: a pid is given again, with another start time."""
    server: str
    """Tells the owner's servers apart."""

    @classmethod
    def of_mine(cls, home: Home, server: str) -> Marker:
        """The marker of a server that this process is about to start."""
        pid = os.getpid()
        start = start_ticks(pid)
        if start is None:
            raise ProcessLookupError(pid)
        return cls(
            home=home_id(home), namespace=pid_namespace(), owner_pid=pid, owner_start=start, server=server
        )

    @classmethod
    def parse(cls, text: str) -> Marker | None:
        """The marker out of a variable's value; None for what is none."""
        try:
            home, namespace, pid, start, server = text.split("/")
            return cls(
                home=home,
                namespace=int(namespace),
                owner_pid=int(pid),
                owner_start=int(start),
                server=server,
            )
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.home}/{self.namespace}/{self.owner_pid}/{self.owner_start}/{self.server}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A process that was ended."""

    pid: int
    command: str


def end_strays(home: Home, servers: Collection[str] = ()) -> list[Stray]:
    """Kill what earlier owners of a home, and servers that this process gave up, have left running.

    Args:
        home: whose processes are meant.
        servers: of this process, those whose processes stay.
    """
    here, namespace = home_id(home), pid_namespace()
    ended: list[Stray] = []
    pinned: list[int] = []
    try:
        for pid in _own_pids():
            with suppress(OSError):
                pid_fd = os.pidfd_open(pid)  # before it is looked at: from here on nobody else can be meant
                pinned.append(pid_fd)
                marker = marker_of(pid)
                if marker is None or (marker.home, marker.namespace) != (here, namespace):
                    continue
                if is_owned(marker, servers):
                    continue
                command = _command(pid)
                signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
                ended.append(Stray(pid=pid, command=command))
    finally:
        for pid_fd in pinned:
            os.close(pid_fd)
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while any(marker_of(stray.pid) for stray in ended) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return ended


def is_owned(marker: Marker, servers: Collection[str]) -> bool:
    """Somebody lives who looks after the processes of this marker."""
    if marker.owner_pid == os.getpid() and marker.owner_start == start_ticks(os.getpid()):
        return marker.server in servers
    return start_ticks(marker.owner_pid) == marker.owner_start


def marker_of(pid: int) -> Marker | None:
    """What a process was started with; None without a marker, and for what has ended."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    name = f"{VARIABLE}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(name):
            return Marker.parse(entry[len(name) :].decode(errors="replace"))
    return None


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError):
        return None


def home_id(home: Home) -> str:
    """The same for every name of a home's folder."""
    status = home.root.stat()
    return f"{status.st_dev:x}.{status.st_ino:x}"


def pid_namespace() -> int:
    """The namespace that this process's pids belong to."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _own_pids() -> Iterator[int]:
    """Other processes of this user."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if entry.stat().st_uid == os.getuid():
                    yield int(entry.name)


def _command(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return " ".join(word.decode(errors="replace") for word in words)[:200].strip()
    return ""
