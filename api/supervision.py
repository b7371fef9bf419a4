"""Keeps one supervisor alive beside the HTTP server.

Knows when to start one and when to wait; nothing of what it does or of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from enum import StrEnum

from ..errors import RunnerError
from ..home import Home
from ..runners.supervisor_process import SupervisorProcess, lock_holder

log = logging.getLogger(__name__)

POLL_S = 0.2
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
SETTLED_S = 60.0
"""A supervisor that lived this long was healthy: the next pause is the first again."""


class SupervisionState(StrEnum):
    """Whether studies are worked on."""

    OFF = "off"
    RUNNING = "running"
    ELSEWHERE = "elsewhere"
    """Another process of this home supervises; this one takes over when it ends."""
    RESTARTING = "restarting"


class Supervision:
    """A thread that starts the supervisor, starts it again when it dies, and stops it in the end."""

    def __init__(self, home: Home, *, allow_remote_code: bool = False) -> None:
        self._home = home
        self._allow_remote_code = allow_remote_code
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervision", daemon=True)
        self.state = SupervisionState.OFF

    def start(self) -> None:
        """Return at once; the supervisor starts behind it."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the supervisor and return when it is gone."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            if lock_holder(self._home) is not None:
                self.state = SupervisionState.ELSEWHERE
                self._stopping.wait(POLL_S)
                continue
            started = time.monotonic()
            self._run_one()
            if time.monotonic() - started > SETTLED_S:
                pause_s = FIRST_PAUSE_S
            if not self._stopping.is_set():
                log.warning("the supervisor ended; starting it again in %.1f s", pause_s)
                self.state = SupervisionState.RESTARTING
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self.state = SupervisionState.OFF

    def _run_one(self) -> None:
        """Start a supervisor and return when it, or this server, ends."""
        try:
            process = SupervisorProcess.start(
                self._home, study_id=None, allow_remote_code=self._allow_remote_code
            )
        except (RunnerError, OSError) as error:
            log.error("the supervisor could not be started: %s", error)
            return
        self.state = SupervisionState.RUNNING
        while process.is_alive() and not self._stopping.wait(POLL_S):
            pass
        process.stop()
