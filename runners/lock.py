"""The lock file that elects the one supervisor of a home, and says who it is."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import IO

import psutil

from ..errors import RunnerError
from ..home import Home

LOCK_PATIENCE_S = 0.5
JOBS_PATIENCE_S = 15.0
"""Longer than it takes a guard to end its job, and then what was ended to be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """Who runs studies in a home."""

    pid: int
    mode: str
    """``study``: one study, then it ends. ``serve``: every study that is queued."""
    study_id: str | None
    started_at: str


def take_lock(home: Home, study_id: str | None) -> IO[str] | None:
    """Lock the home for this process's life; None when another process has it. The kernel lets go of it."""
    file = home.supervisor_lock.open("a+", encoding="utf-8")
    if not lock_within(file, LOCK_PATIENCE_S):
        file.close()
        return None
    holder = LockHolder(
        pid=os.getpid(),
        mode="study" if study_id else "serve",
        study_id=study_id,
        started_at=datetime.now(UTC).isoformat(),
    )
    file.seek(0)
    file.truncate()
    file.write(json.dumps(asdict(holder)))
    file.flush()
    return file


def take_jobs_lock(
    home: Home, evict: Callable[[], object], check: Callable[[], object] = lambda: None
) -> IO[str]:
    """Lock the right to run jobs in a home, for a warm server that is about to start.

    The server and its jobs inherit the lock and hold it until the last of them is gone: a successor's
    trials never run beside those of a supervisor that was killed a moment ago.

    Args:
        home: whose jobs.
        evict: ends what is left of them. Guards have time to do so first: they find what it cannot.
        check: called while waiting; it may raise to give up.

    Raises:
        RunnerError: they are still there after all.
    """
    path = home.run / "jobs.lock"
    file = path.open("a+", encoding="utf-8")
    try:
        free = lock_within(file, JOBS_PATIENCE_S, check)
        evict()  # not all that is left holds the lock
        free = free or lock_within(file, JOBS_PATIENCE_S, check)
    except BaseException:
        file.close()
        raise
    if not free:
        file.close()
        raise RunnerError(
            f"processes of an earlier warm server still hold {path}",
            next_step=f"find them with: fuser {path}",
        )
    return file


def lock_within(file: IO[str], patience_s: float, check: Callable[[], object] = lambda: None) -> bool:
    """Try for a while: whoever asks for the holder has the lock for an instant."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            check()
            time.sleep(0.02)
        else:
            return True


def lock_holder(home: Home) -> LockHolder | None:
    """The living supervisor of a home, None when there is none."""
    try:
        with home.supervisor_lock.open("r", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = LockHolder(**json.loads(file.read()))
                return holder if psutil.pid_exists(holder.pid) else None
            return None
    except (FileNotFoundError, ValueError):  # never started, or about to write its name
        return None
