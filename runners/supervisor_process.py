"""Starting and ending a supervisor from the API or the command line.

Imports neither torch nor the database.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from ..home import Home
from .keeping import put_aside
from .lock import LockHolder, lock_holder


class SupervisorProcess:
    """A supervisor that lives no longer than this process."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline_fd: int) -> None:
        self._process = process
        self._lifeline_fd = lifeline_fd

    @classmethod
    def start(cls, home: Home, *, study_id: str | None, allow_remote_code: bool = False) -> SupervisorProcess:
        """Start one for a single study, or (None) for every study that is queued or was interrupted.

        If another supervisor has the home's lock, the new one ends at once with exit code 75. It runs in
        a session of its own, so that Ctrl-C in a terminal reaches only us.
        """
        home.create()
        environment = {**os.environ, "RANKWISE_HOME": str(home.root)}
        if home.database_url is not None:
            environment["RANKWISE_DATABASE_URL"] = home.database_url
        lifeline, ours = os.pipe()
        command = [sys.executable, "-m", "rankwise.runners.supervisor", str(lifeline)]
        if study_id is not None:
            command += ["--study", study_id]
        if allow_remote_code:
            command.append("--allow-remote-code")
        try:
            log_path = home.logs / "supervisor.log"
            put_aside(log_path)
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    pass_fds=[lifeline],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            os.close(lifeline)
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def stop(self, grace_s: float = 15.0) -> None:
        """Ask it to stop its trial and hand the study back; kill it after the grace time."""
        with suppress(OSError):
            os.close(self._lifeline_fd)
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace_s)
            return
        self._process.kill()
        self._process.wait()


__all__ = ["LockHolder", "SupervisorProcess", "lock_holder"]
