from __future__ import annotations

import pytest

from rankwise.api import rate_limit
from rankwise.api.rate_limit import Buckets, network_of


class Hand:
    """A clock that tests turn."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_burst_then_the_rate() -> None:
    clock = Hand()
    buckets = Buckets(2.0, now=clock)
    assert [buckets.take("a") for _ in range(20)] == [0.0] * 20
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0.0
    clock.seconds += 0.5
    assert (buckets.take("a"), buckets.take("a")) == (0.0, pytest.approx(0.5))
    clock.seconds += 1000
    assert [buckets.take("a") for _ in range(21)].count(0.0) == 20


def test_no_rate_is_no_limit() -> None:
    buckets = Buckets(0.0)
    assert not any(buckets.take("a") for _ in range(10_000))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MOST_KEYS", 5)
    buckets = Buckets(1.0)
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._buckets) == 5


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::2", "2001:db8::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
    ],
)
def test_a_stranger_is_an_address_or_a_network_of_one(address: str, network: str) -> None:
    assert network_of(address) == network
