"""What the GPUs held and did in the last hour: kept in memory while somebody looks or studies run.

Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi.concurrency import run_in_threadpool

from ..errors import StoreError
from ..probes.gpu import read_gpus
from ..probes.profiles import GpuProfile
from ..store import Store

log = logging.getLogger(__name__)

KEPT = timedelta(hours=1)
LOOK_S = 5.0
LEAST_APART = timedelta(seconds=2)
"""Several pages that look at once leave one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """One GPU at one moment."""

    uuid: str
    index: int
    used_bytes: int | None
    total_bytes: int
    utilisation_percent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All GPUs at one moment."""

    at: datetime
    gpus: tuple[GpuUse, ...]


class GpuHistory:
    """Samples of the last hour. Any thread may use it."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._samples: deque[Sample] = deque()
        self._lock = threading.Lock()

    def keep(self, gpus: Sequence[GpuProfile]) -> None:
        """Add what was just read of them."""
        now = self._now()
        with self._lock:
            if not gpus or (self._samples and now - self._samples[-1].at < LEAST_APART):
                return
            while self._samples and now - self._samples[0].at > KEPT:
                self._samples.popleft()
            uses = (
                GpuUse(
                    uuid=gpu.uuid,
                    index=gpu.index,
                    used_bytes=gpu.used_bytes,
                    total_bytes=gpu.total_bytes,
                    utilisation_percent=gpu.utilisation_percent,
                )
                for gpu in gpus
            )
            self._samples.append(Sample(at=now, gpus=tuple(uses)))

    def samples(self) -> tuple[Sample, ...]:
        """The oldest first."""
        with self._lock:
            return tuple(sample for sample in self._samples if self._now() - sample.at <= KEPT)

    async def watch(self, store: Store) -> None:
        """Look every few seconds while there are studies to run, until cancelled; never without a GPU."""
        while True:
            try:
                if not await run_in_threadpool(self._look, store):
                    return
            except StoreError as error:
                log.warning("GPUs were not looked at: %s", error)
            await asyncio.sleep(LOOK_S)

    def _look(self, store: Store) -> bool:
        """Whether there is anything to look at."""
        if self._samples and not store.unfinished_ids():
            return True
        gpus, _ = read_gpus()
        self.keep(gpus)
        return bool(gpus)
