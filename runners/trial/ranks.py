"""A trial of several processes: forks them, and lets them succeed or end as one.

This process trains nothing. It forks one child a rank, each with the libraries that it was forked with
itself, hands on what they report, and adds up what they measured. As soon as one of them fails, the others
are killed: left alone they would wait for it, some for half an hour. Knows nothing about what ranks do.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch._C._distributed_c10d import TCPStore

from ..guard import die_with_parent
from ..line_reader import LineReader
from ..messages import Report, last_line

POLL_MS = 100
SETTLE_S = 1.0
"""After a rank has failed, others may say why: which of them failed first is not always who is seen first."""
STOPPED_S = 10.0
"""A rank that somebody stopped (SIGSTOP) for longer is given up."""
MIN_STALL_S = 60.0
STALL_STEPS = 20
"""Without any step for as long as so many of the slowest took, and at least as above, ranks hang."""
MEETING_S = 120.0
"""Within this all ranks have to meet."""
LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")
"""What a rank says whose neighbour is gone: a consequence, not a cause."""

Work = Callable[[int, Callable[[], None], Report], None]
"""What a rank does. It gets its number, what it calls to meet the others, and where it reports ``progress``
and a ``result`` or ``failure``."""


@dataclass
class Rank:
    """One of the processes, and what it has said."""

    number: int
    pid: int
    connection: socket.socket
    reader: LineReader = field(default_factory=LineReader)
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None
    crash: str | None = None
    status: int | None = None
    """As ``waitpid`` gives it; None while it runs."""
    step: int = -1
    stopped_since_s: float | None = None

    @property
    def is_done(self) -> bool:
        """It ended, and well."""
        return self.status == 0 and self.result is not None

    @property
    def has_failed(self) -> bool:
        """It said so, or is gone without a result."""
        return (
            self.failure is not None
            or self.crash is not None
            or (self.status is not None and not self.is_done)
        )


def run_ranks(count: int, work: Work, report: Report) -> None:
    """Run so many ranks to their common end, and report one ``result`` or one ``failure`` of them all.

    ``progress`` of rank 0 is handed on.
    """
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        ranks = [fork_rank(number, count, work, meeting) for number in range(count)]
    try:
        failure = follow(ranks, report)
    finally:
        kill(ranks)
    if failure is not None:
        report("failure", **failure)
        return
    results = [rank.result or {} for rank in ranks]
    measured = [each["measurement"] for each in results]
    report("result", measurement=merged(measured), heldout=results[0]["heldout"])


def fork_rank(number: int, count: int, work: Work, meeting: socket.socket) -> Rank:
    """Start one rank; returns in the parent only."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        die_with_parent(parent_pid, signal.SIGKILL)
        become_rank(number, count, work, meeting, Report(theirs.fileno()))
    theirs.close()
    return Rank(number, pid, ours)


def become_rank(number: int, count: int, work: Work, meeting: socket.socket, report: Report) -> NoReturn:
    """Work; the process ends here."""
    code = 1
    try:
        work(number, lambda: meet(number, count, meeting), report)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the process's edge: the log gets the traceback
        traceback.print_exc()
        with suppress(OSError):
            report("crash", reason=last_line(str(error)) or type(error).__name__)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def meet(number: int, count: int, meeting: socket.socket) -> None:
    """Join the ranks into one group, over a port that was bound before any of them began.

    So none can be taken in the meantime. Launchers' variables are set as well: libraries read them.
    """
    port = meeting.getsockname()[1]
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    store = TCPStore(
        "127.0.0.1",
        port,
        count,
        is_master=number == 0,
        timeout=timedelta(seconds=MEETING_S),
        master_listen_fd=os.dup(meeting.fileno()) if number == 0 else None,
    )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=number, world_size=count)


def follow(ranks: Sequence[Rank], report: Report) -> dict[str, Any] | None:
    """Hand on what rank 0 tells until all are done; the failure of one of them, if there is any.

    A failure has an ``outcome``, a ``reason`` and, if a rank was killed from outside, the ``signal``.
    """
    poller = select.poll()
    by_fd = {rank.connection.fileno(): rank for rank in ranks}
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    pace = Pace()
    settled_s: float | None = None
    while not all(rank.is_done for rank in ranks):
        for fd, _ in poller.poll(POLL_MS):
            if not hear(by_fd[fd], report, pace):
                poller.unregister(fd)
        for rank in ranks:
            look_after(rank)
        now_s = time.monotonic()
        if not any(rank.has_failed for rank in ranks):
            settled_s = None  # a rank may be gone before its last words were read
            if (hanging := find_hanging(ranks, pace, now_s)) is not None:
                return hanging
        elif settled_s is None:
            settled_s = now_s + SETTLE_S
        elif now_s >= settled_s:
            return failure_of(ranks)
    return None


class Pace:
    """How long steps take, so that a rank that hangs can be told from slow ones."""

    def __init__(self) -> None:
        self.slowest_s = 0.0
        self.last_s: float | None = None

    def step(self) -> None:
        """A rank has taken another one."""
        now_s = time.monotonic()
        if self.last_s is not None:
            self.slowest_s = max(self.slowest_s, now_s - self.last_s)
        self.last_s = now_s

    def rest(self) -> None:
        """What comes now are no steps."""
        self.last_s = None

    def has_stalled(self, now_s: float) -> bool:
        """No step for far too long."""
        return self.last_s is not None and now_s - self.last_s > max(
            MIN_STALL_S, STALL_STEPS * self.slowest_s
        )


def hear(rank: Rank, report: Report, pace: Pace) -> bool:
    """Read what a rank says; False once it says nothing more."""
    try:
        data = rank.connection.recv(1 << 20)
    except ConnectionResetError:
        data = b""
    for message in rank.reader.read(data):
        kind = message.pop("type")
        del message["schema_version"]
        if kind == "progress":
            note_progress(rank, message, pace)
            if rank.number == 0:
                report(kind, **message)
        elif kind == "result":
            rank.result = message
        elif kind == "failure":
            rank.failure = message
        elif kind == "crash":
            rank.crash = message["reason"]
    return bool(data)


def note_progress(rank: Rank, message: Mapping[str, Any], pace: Pace) -> None:
    """Keep count of steps. A phase without any has no pace."""
    step = message.get("step")
    if message["phase"] != "train" or step is None:
        pace.rest()
    elif step != rank.step:
        rank.step = step
        pace.step()


def look_after(rank: Rank) -> None:
    """Find out whether a rank has ended, or somebody has stopped it."""
    if rank.status is not None:
        return
    pid, status = os.waitpid(rank.pid, os.WNOHANG)
    if pid:
        rank.status = status
        return
    if state_of(rank.pid) != "T":
        rank.stopped_since_s = None
    elif rank.stopped_since_s is None:
        rank.stopped_since_s = time.monotonic()


def state_of(pid: int) -> str | None:
    """The kernel's letter for what a process does, ``T`` being stopped; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def find_hanging(ranks: Sequence[Rank], pace: Pace, now_s: float) -> dict[str, Any] | None:
    """The failure of a rank that will not go on, if there is one."""
    for rank in ranks:
        if rank.stopped_since_s is not None and now_s - rank.stopped_since_s > STOPPED_S:
            reason = f"rank {rank.number} was stopped (SIGSTOP) for more than {STOPPED_S:.0f} s"
            return {"outcome": "lost", "reason": reason}
    if pace.has_stalled(now_s):
        behind = min(ranks, key=lambda rank: rank.step)
        waited_s = now_s - (pace.last_s or now_s)
        reason = (
            f"no optimizer step for {waited_s:.0f} s: rank {behind.number} is behind, after {behind.step}"
        )
        return {"outcome": "timeout", "reason": reason}
    return None


def failure_of(ranks: Sequence[Rank]) -> dict[str, Any]:
    """Why the ranks failed: what one found out itself, then who was killed, then who crashed by himself."""
    for rank in ranks:
        if rank.failure is not None:
            return {**rank.failure, "reason": f"rank {rank.number}: {rank.failure['reason']}"}
    for rank in ranks:
        if rank.status is not None and os.WIFSIGNALED(rank.status):
            return {
                "outcome": "lost",
                "reason": f"rank {rank.number} was killed",
                "rank": rank.number,
                "signal": os.WTERMSIG(rank.status),
            }
    crashed = sorted((rank for rank in ranks if rank.has_failed), key=lambda rank: is_consequence(rank.crash))
    first = crashed[0]
    return {"outcome": "crashed", "reason": f"rank {first.number}: {first.crash or 'ended without a word'}"}


def is_consequence(reason: str | None) -> bool:
    """A rank says this because another one is gone."""
    return reason is not None and any(words in reason.lower() for words in LOST_PEER)


def kill(ranks: Sequence[Rank]) -> None:
    """End whoever still runs. Their own children become the guard's, which kills them."""
    for rank in running(ranks):
        with suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGKILL)
    for rank in running(ranks):
        _, rank.status = os.waitpid(rank.pid, 0)
    for rank in ranks:
        rank.connection.close()


def running(ranks: Sequence[Rank]) -> Iterator[Rank]:
    """Those that nobody has waited for."""
    return (rank for rank in ranks if rank.status is None)


def merged(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One measurement of them all: of memory the highest, of the host's, which they share, the sum."""
    whole = dict(measurements[0])
    for name in ("peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes"):
        known = [each[name] for each in measurements if each.get(name) is not None]
        if known:
            whole[name] = max(known)
    whole["peak_process_bytes"] = sum(each["peak_process_bytes"] for each in measurements)
    whole["ranks"] = [rank for each in measurements for rank in each.get("ranks", ())]
    return whole
