"""Memory in use on a device while trials come and go. Knows nothing of what the trials do."""

from __future__ import annotations

import threading
import time
from typing import Any

from device_checks.bench import Bench

SAMPLE_S = 0.05
FREE_LIMIT_S = 30.0
FREE_POLL_S = 0.01
BASELINE_TOLERANCE_BYTES = 64 * 2**20
"""What the driver itself may hold more or less of."""


class UsedMemory:
    """Follows, in a thread, how far memory in use on a GPU grows over what it was.

    NVML does not always say which process holds what (not inside some containers): on a device that nobody
    else uses, the growth is the trial's.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.before_bytes = bench.used_bytes()
        self.highest_bytes = self.before_bytes

    @property
    def growth_bytes(self) -> int | None:
        """None where NVML does not tell."""
        if self.before_bytes is None or self.highest_bytes is None:
            return None
        return self.highest_bytes - self.before_bytes

    def __enter__(self) -> UsedMemory:
        if self.before_bytes is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            now_bytes = self._bench.used_bytes()
            if now_bytes is not None:
                self.highest_bytes = max(self.highest_bytes or 0, now_bytes)


def returned_to(bench: Bench, before_bytes: int | None, figures: dict[str, Any], *, key: str) -> bool:
    """Wait until the device's memory is as it was, and keep how long that took; at once on the CPU."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < FREE_LIMIT_S:
        used = bench.used_bytes()
        if before_bytes is None or used is None:
            return True
        if used <= before_bytes + BASELINE_TOLERANCE_BYTES:
            figures[key] = time.monotonic() - started_s
            return True
        time.sleep(FREE_POLL_S)
    return False


def gib(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 2**30:.2f} GiB"
