"""The supervisor: the one process of a ``RANKWISE_HOME`` that runs studies.

``python -m rankwise.runners.supervisor LIFELINE_FD [--study ID]`` takes the home's lock file, takes back what
a dead predecessor left claimed, and runs studies one after the other: the one named, or every queued one that
is for this place, for as long as it lives. It is the parent of the warm server. SIGTERM, or the end of its
parent (the lifeline pipe closes), makes it stop its trial and hand the study back. Imports no torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress

from ..errors import RankwiseError, StaleFence, StoreError
from ..home import Home
from ..optimizer.domain import StudyState
from ..store import Store, StudyClaim
from .keeping import Keeping, remove_old
from .lock import take_jobs_lock, take_lock
from .place import worker_of
from .reaper import reap, reaping
from .strays import end_strays
from .study import Interrupted, StudyRun
from .warm_client import WarmServer

IDLE_S = 0.25
STOP_GRACE_S = 8.0
"""When the parent is gone: longer than it takes a guard to end its job."""

STUDY_JOBS = ("prepare", "estimate-trials", "trial")

EXIT_LOCKED = 75
"""Another supervisor holds the lock (sysexits' EX_TEMPFAIL)."""

log = logging.getLogger("rankwise.supervisor")


class Supervisor:
    """Runs studies until it is told to stop."""

    def __init__(
        self, home: Home, store: Store, study_id: str | None, *, allow_remote_code: bool = False
    ) -> None:
        self._home = home
        self._store = store
        self._study_id = study_id
        self._allow_remote_code = allow_remote_code
        self._keeping = Keeping.from_environment()
        self._warm: WarmServer | None = None
        self._stopping = threading.Event()
        self._worker = worker_of(home)

    def stop(self, *_: object) -> None:
        """Signal handler: finish nothing more."""
        self._stopping.set()

    def run(self) -> None:
        """The main loop."""
        reap(self._store, dead_place=self._worker.place)
        try:
            self._start_warm()
        except Interrupted:
            return
        remove_old(self._home, self._keeping, self._store.unfinished_ids)
        try:
            with reaping(self._store):
                self._run_studies()
        finally:
            if self._warm:
                self._warm.stop()

    def _run_studies(self) -> None:
        while not self._stopping.is_set():
            claim = self._store.claim_study(self._worker, only=self._study_id)
            if claim is not None:
                try:
                    self._run_study(claim)
                except StaleFence:
                    log.warning("study %s: taken over by another supervisor", claim.id)
            elif self._study_id is not None:
                return
            else:
                self._stopping.wait(IDLE_S)

    def _run_study(self, claim: StudyClaim) -> None:
        log.info("study %s: started", claim.id)
        run = StudyRun(
            store=self._store,
            home=self._home,
            claim=claim,
            warm_server=self._live_warm,
            should_stop=self._stopping.is_set,
            worker=self._worker.name,
            allow_remote_code=self._allow_remote_code,
            keeping=self._keeping,
        )
        try:
            run.run()
        except Interrupted:
            self._store.release_study(claim)
            log.info("study %s: handed back", claim.id)
        except (StaleFence, StoreError):
            raise
        except Exception as error:
            log.exception("study %s: failed unexpectedly", claim.id)
            reason = (
                f"RunnerError: {type(error).__name__}: {error} — read {self._home.logs / 'supervisor.log'}"
            )
            self._store.finish_study(claim, StudyState.FAILED, reason)
        else:
            log.info("study %s: %s", claim.id, self._store.get_study(claim.id).state)
            remove_old(self._home, self._keeping, self._store.unfinished_ids)

    def _start_warm(self) -> None:
        with take_jobs_lock(self._home, self._end_strays, self._check_stopping) as jobs_lock:
            self._warm = WarmServer(self._home.logs / "warm.log", STUDY_JOBS, jobs_lock, home=self._home)

    def _check_stopping(self) -> None:
        """Raise if nothing more is to be started."""
        if self._stopping.is_set():
            raise Interrupted

    def _end_strays(self) -> None:
        for stray in end_strays(self._home):
            log.warning("process %d was left running and is ended: %s", stray.pid, stray.command)

    def _live_warm(self) -> WarmServer:
        if self._warm is None or not self._warm.is_alive():
            if self._warm:
                log.warning("the warm server died: starting another")
                self._warm.stop()
            self._start_warm()
        assert self._warm is not None  # noqa: S101 - just started
        return self._warm


def watch_lifeline(fd: int) -> None:
    """End with the parent: the other end of the pipe closes when it is gone, however it went."""
    with suppress(OSError):
        os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_S)
    os._exit(1)


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="rankwise.runners.supervisor")
    parser.add_argument("lifeline_fd", type=int)
    parser.add_argument("--study")
    parser.add_argument("--allow-remote-code", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    home = Home.from_environment().create()
    lock = take_lock(home, arguments.study)
    if lock is None:
        log.info("another supervisor runs this home")
        return EXIT_LOCKED
    with lock:
        store = Store.open(home.database)
        try:
            supervisor = Supervisor(
                home, store, arguments.study, allow_remote_code=arguments.allow_remote_code
            )
            signal.signal(signal.SIGTERM, supervisor.stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(target=watch_lifeline, args=(arguments.lifeline_fd,), daemon=True).start()
            supervisor.run()
        except RankwiseError:
            log.exception("the supervisor cannot go on")
            return 1
        finally:
            store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
