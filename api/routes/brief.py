"""Threads for reads that take milliseconds, of which there are many.

Python computes in one thread at a time, and every thread that waits for its turn asks for it each
millisecond (``SWITCH_S`` in ``server.py``): forty of them take longer for the same work than a few, and all
are late. What may take long, or waits for something, stays with the forty threads that FastAPI has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")

_limiter: RunVar[CapacityLimiter] = RunVar("brief reads")


async def briefly(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What this tells, asked in one of few threads."""
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(partial(read, *args, **kwargs), limiter=limiter)


def brief(route: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """The same route, run in one of few threads."""

    @wraps(route)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await briefly(route, *args, **kwargs)

    return run
