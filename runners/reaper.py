"""Looks for what nobody looks after any more, also while this supervisor is busy with a study."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import StoreError
from ..store import HEARTBEAT_S, Reaped, Store

log = logging.getLogger("rankwise.supervisor")


def reap(store: Store, *, dead_place: str | None = None) -> None:
    """Look once, and say what was found."""
    tell(store.reap(dead_place=dead_place))


def tell(reaped: Reaped) -> None:
    """A line for each study and trial."""
    for trial in reaped.trials:
        log.info("trial %s of study %s was lost: %s", trial.number, trial.study_id, trial.reason)
    for study_id in reaped.studies:
        log.info("study %s was left by its supervisor", study_id)


@contextmanager
def reaping(store: Store, *, every_s: float = HEARTBEAT_S) -> Iterator[None]:
    """A thread that looks again and again while the block runs."""
    stopping = threading.Event()

    def look() -> None:
        while not stopping.wait(every_s):
            try:
                reap(store)
            except StoreError as error:
                log.warning("cannot look for abandoned studies: %s", error)

    thread = threading.Thread(target=look, name="reaper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
