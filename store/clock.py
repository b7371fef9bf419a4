"""The two clocks of the store: UTC for people, seconds since boot for leases.

Wall clocks are set back and forth (NTP, daylight saving by hand, a suspended laptop), so a lease is never
timed by one. ``CLOCK_BOOTTIME`` only grows, suspension included, and is shared by all processes of a
machine; the boot id tells its values apart after a restart. Knows nothing about what is leased.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """What the store asks of a clock; tests pass one that they turn by hand."""

    @property
    def boot_id(self) -> str:
        """Identifies the machine's present boot."""
        ...

    def boot_s(self) -> float:
        """Seconds since that boot."""
        ...

    def utc(self) -> datetime:
        """The present moment, aware, in UTC."""
        ...


class SystemClock:
    """The machine's own clocks (Linux)."""

    @cached_property
    def boot_id(self) -> str:
        """The kernel's random id of this boot."""
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def boot_s(self) -> float:
        """``CLOCK_BOOTTIME``: seconds since boot, time asleep included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def utc(self) -> datetime:
        """The wall clock."""
        return datetime.now(UTC)
