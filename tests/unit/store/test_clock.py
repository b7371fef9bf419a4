from __future__ import annotations

import time
import uuid
from datetime import timedelta

from rankwise.store.clock import SystemClock


def test_seconds_since_boot_count_time_asleep() -> None:
    clock = SystemClock()
    first = clock.boot_s()
    assert first >= time.monotonic() - 1
    assert clock.boot_s() >= first


def test_boot_id_is_the_kernels_and_stays() -> None:
    assert uuid.UUID(SystemClock().boot_id) == uuid.UUID(SystemClock().boot_id)


def test_utc_is_aware() -> None:
    assert SystemClock().utc().utcoffset() == timedelta(0)
