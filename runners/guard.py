"""The process between the warm server and a job: starts it, watches it, and leaves nothing behind.

The guard is a subreaper (``PR_SET_CHILD_SUBREAPER``): whatever the job forks, even a ``setsid`` daemon
that ignores SIGTERM, becomes the guard's child when its own parent dies, so killing children until none
is left reaches every descendant. The guard dies with the warm server, and ends the job when the other
side of the job's socket closes. Linux only. Knows nothing about what jobs do.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from ..optimizer.domain import SCHEMA_VERSION
from ..probes.host import memory_bytes
from .capped_log import CappedLog, LogPipe
from .disk_use import folder_bytes, missing_bytes

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_MS = 100
DISK_PERIOD_S = 0.5
"""Between looks at the disk: a folder of many files takes a while to add up."""
MIN_AVAILABLE_SHARE = 0.03
"""Of the host's memory: below this the job is ended before the kernel picks a victim of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the guard ends a job that does not end by itself."""

    time_s: float | None = None
    host_memory_bytes: int | None = None
    """Growth of the resident sets of the job and all below it over what it inherited at the fork."""
    disk_bytes: int | None = None
    """Growth of what the job's folder, in which its log lies, takes on its disk."""
    grace_s: float = 5.0
    """Between SIGTERM and SIGKILL."""


def prctl(option: int, value: int) -> None:
    """Set a process attribute; raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def die_with_parent(parent_pid: int, how: signal.Signals = signal.SIGTERM) -> None:
    """Ask for a signal when the parent dies; leave at once if it is dead already."""
    prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent_pid:
        os._exit(1)


def guard(job: Callable[[], None], connection: socket.socket, log_path: Path, limits: Limits) -> NoReturn:
    """Run a job to its end in a child of this process, report the end, exit. Never returns.

    Call in a freshly forked process. The last line on the connection is the ``exit`` message, written
    when no descendant is left.
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    stop = StopFlag()
    signal.signal(signal.SIGTERM, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started_s = time.monotonic()
    guard_pid = os.getpid()
    output = LogPipe(CappedLog(log_path))
    pid = os.fork()
    if pid == 0:
        become_job(job, connection, guard_pid, output.leave())
    output.start()
    cause = watch(pid, connection, limits, stop, started_s, log_path.parent)
    status, usage = end_job(pid, grace_s=0.0 if cause == "finished" else limits.grace_s)
    kill_descendants()
    output.finish()
    message = {
        "type": "exit",
        "cause": cause,
        "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "wall_s": time.monotonic() - started_s,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
    }
    send(connection, message)
    os._exit(0)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Write one line of our own, on a line of its own: the job may have been killed in the middle of one."""
    line = json.dumps({"schema_version": SCHEMA_VERSION, **message}).encode()
    with suppress(OSError):  # nobody listens any more: the job is ended all the same
        connection.sendall(b"\n" + line + b"\n")


class StopFlag:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, *_: Any) -> None:
        """Signal handler."""
        self.is_set = True


def become_job(job: Callable[[], None], connection: socket.socket, guard_pid: int, output: int) -> NoReturn:
    """Turn the forked child into the job: own output, default signals, killed with the guard.

    It says itself that it has started: while it lives it is the only writer, so that no line of the
    guard's can come before ``started`` or break into one of the job's.
    """
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        die_with_parent(guard_pid, signal.SIGKILL)
        send(connection, {"type": "started", "pid": os.getpid()})
        job()
        code = 0
    except BaseException:  # noqa: BLE001 - the process's edge: the log gets the traceback, the guard the code
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def watch(
    pid: int, connection: socket.socket, limits: Limits, stop: StopFlag, started_s: float, folder: Path
) -> str:
    """Wait until the job ends by itself or must be ended; returns the cause."""
    poller = select.poll()
    pid_fd = os.pidfd_open(pid)
    poller.register(pid_fd, select.POLLIN)
    poller.register(connection, select.POLLIN | select.POLLHUP | select.POLLRDHUP)
    inherited_bytes = resident_bytes(pid) or 0
    min_available_bytes = int(memory_bytes()[0] * MIN_AVAILABLE_SHARE)
    disk = DiskWatch(folder, limits.disk_bytes)
    try:
        while True:
            ready = {fd for fd, _ in poller.poll(POLL_MS)}
            if pid_fd in ready:
                return "finished"
            if stop.is_set or connection.fileno() in ready:
                return "cancelled"
            if limits.time_s is not None and time.monotonic() - started_s > limits.time_s:
                return "timeout"
            if (
                limits.host_memory_bytes is not None
                and grown_bytes(pid, inherited_bytes) > limits.host_memory_bytes
            ):
                return "memory-limit"
            if memory_bytes()[1] < min_available_bytes:
                return "host-memory"
            if cause := disk.look():
                return cause
    finally:
        os.close(pid_fd)


class DiskWatch:
    """What a job leaves on its folder's disk, looked at now and then."""

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        self._before_bytes = folder_bytes(folder)
        self._looked_s = time.monotonic()

    def look(self) -> str | None:
        """Why the job must end, if it must."""
        if time.monotonic() - self._looked_s < DISK_PERIOD_S:
            return None
        with suppress(OSError):  # the folder is gone, or its disk: then others will say so
            if missing_bytes(self._folder):
                return "disk-space"
            if (
                self._limit_bytes is not None
                and folder_bytes(self._folder) - self._before_bytes > self._limit_bytes
            ):
                return "disk-limit"
        self._looked_s = time.monotonic()
        return None


def grown_bytes(pid: int, inherited_bytes: int) -> int:
    """What a process and all below it hold beyond what each shares with the one it was forked from."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        with suppress(OSError):
            pids += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return sum(max(0, (resident_bytes(each) or 0) - inherited_bytes) for each in pids)


def resident_bytes(pid: int) -> int | None:
    """Resident set of a process; None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * resource.getpagesize()


def end_job(pid: int, *, grace_s: float) -> tuple[int, resource.struct_rusage]:
    """SIGTERM, wait for the grace time, SIGKILL; returns wait status and resource usage."""
    deadline_s = time.monotonic() + grace_s
    if grace_s > 0:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() >= deadline_s:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def kill_descendants() -> None:
    """Kill until no child is left. Orphans of the killed become children of this subreaper in turn."""
    while True:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        try:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.005)
        except ChildProcessError:
            return
