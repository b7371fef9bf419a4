from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from rankwise.store.clock import SystemClock
from rankwise.store.postgresql import CLOCK_ID, ServerClock

NO_DATABASE = Session()


def test_seconds_since_boot_count_time_asleep() -> None:
    clock = SystemClock()
    first, second = clock.now(NO_DATABASE), clock.now(NO_DATABASE)
    assert time.monotonic() - 1 <= first.boot_s <= second.boot_s


def test_boot_id_is_the_kernels() -> None:
    expected = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert SystemClock().now(NO_DATABASE).boot_id == expected


def test_utc_is_aware_and_now() -> None:
    utc = SystemClock().now(NO_DATABASE).utc
    assert utc.tzinfo is UTC
    assert abs(datetime.now(UTC) - utc) < timedelta(seconds=10)


def test_the_servers_clock_goes_on_in_a_transaction(postgres_url: str) -> None:
    """now() would stand still from its beginning on: a transaction that waited would see leases too old."""
    engine = create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    with Session(engine) as session:
        first, second = ServerClock().now(session), ServerClock().now(session)
    engine.dispose()
    assert first.boot_id == second.boot_id == CLOCK_ID
    assert 0 < second.boot_s - first.boot_s < 30
    assert first.utc.tzinfo is UTC
    assert first.utc.timestamp() == first.boot_s
