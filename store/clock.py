"""The two clocks of the store: UTC for people, seconds since boot for leases.

Wall clocks are set back and forth (NTP, daylight saving by hand, a suspended laptop), so a lease is never
timed by this machine's. ``CLOCK_BOOTTIME`` only grows, suspension included, and is shared by all processes of
a machine; the boot id tells its values apart after a restart. Where machines share a database, its server's
clock is the only one (``postgresql.py``). Knows nothing about what is leased.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Moment:
    """What the clocks say, read together."""

    utc: datetime
    """Aware, in UTC."""
    boot_id: str
    """Of whose boot ``boot_s`` counts."""
    boot_s: float
    """Seconds that only grow."""


class Clock(Protocol):
    """What the store asks of a clock; tests pass one that they turn by hand."""

    def now(self, transaction: Session | Connection) -> Moment:
        """The present moment; whoever has to ask the database does so in this transaction."""
        ...


class SystemClock:
    """The machine's own clocks (Linux)."""

    def now(self, _: Session | Connection) -> Moment:
        """``CLOCK_BOOTTIME``, seconds since boot with time asleep included, and the wall clock."""
        return Moment(datetime.now(UTC), self._boot_id, time.clock_gettime(time.CLOCK_BOOTTIME))

    @cached_property
    def _boot_id(self) -> str:
        """The kernel's random id of this boot."""
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
