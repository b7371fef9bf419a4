"""How often one caller may ask: token buckets in memory. Knows nothing of requests.

Each server counts for itself. Libraries for this keep counters in Redis, or decorate routes, which is after
the body has been read; a bucket is two numbers.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KEYS = 10_000
"""Buckets that are kept; the one that was used longest ago is forgotten, and is full again."""
BURST_S = 10.0
"""For so many seconds' worth, requests may come all at once."""


class Buckets:
    """A bucket for each key, which fills by ``rate`` a second.

    Args:
        rate: requests a second; 0 for any number.
        now: a clock that only goes forward.
    """

    def __init__(self, rate: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst = rate, max(1.0, rate * BURST_S)
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one from the bucket: 0 where there was one, else the seconds until there will be."""
        if not self._rate:
            return 0.0
        now = self._now()
        left, then = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        is_there = left >= 1.0
        self._buckets[key] = (left - 1.0 if is_there else left, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return 0.0 if is_there else (1.0 - left) / self._rate


def network_of(address: str) -> str:
    """What counts as one stranger: an IPv4 address; of IPv6 the /64, which is one customer's."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((str(parsed), 64), strict=False))
    return str(parsed)
