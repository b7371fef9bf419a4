"""How many requests may be worked on at a time, of those that are answered while the client waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from fastapi import Request, Response

from ..problems import plain_problem, problem_response

AT_ONCE = 2
"""Each takes a core, and the memory of a job."""
RETRY_AFTER_S = 2


class Turns:
    """As many turns as are given, and no queue."""

    def __init__(self, count: int = AT_ONCE) -> None:
        self._left = threading.BoundedSemaphore(count)

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Whether it is this one's turn; it ends with the block."""
        if not self._left.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        finally:
            self._left.release()


def busy(request: Request) -> Response:
    """503, where it is not this one's turn."""
    problem = plain_problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{AT_ONCE} other estimates or inspections are being worked on",
        next_step="ask again in a few seconds",
        instance=request.url.path,
    )
    return problem_response(problem, {"Retry-After": str(RETRY_AFTER_S)})
