"""Requests to one server: sent again where that is safe, and errors raised as the server's own.

Knows nothing of studies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx2

from ... import __version__
from ...errors import RankwiseError, RemoteError
from .problems import error_of
from .server import Server

CONNECT_S = 10.0
READ_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
LONGEST_RETRY_AFTER_S = 120.0
"""A server that asks for more patience than this is said to be busy."""

AGAIN = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Answers after which the same request may succeed."""

Content = Callable[[], Iterable[bytes]]
"""A body that can be read from its start again."""


class Connection:
    """Sends requests, each until it is answered for good or ``retries`` more have been in vain.

    Every request here may be sent twice: those that are not idempotent by their method carry an
    ``Idempotency-Key``.
    """

    def __init__(
        self,
        server: Server,
        *,
        retries: int,
        timeout_s: float,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server
        self._retries = retries
        self._timeout_s = timeout_s
        self._sleep = sleep
        headers = {"User-Agent": f"rankwise/{__version__}"}
        if server.token is not None:
            headers["Authorization"] = f"Bearer {server.token}"
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            trust_env=not server.is_on_this_machine,
            transport=transport,
        )

    def close(self) -> None:
        """Close all sockets."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: Content | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """The answer, read to its end.

        Raises:
            RankwiseError: as the server answered it; RemoteError where it did not answer.
        """

        def attempt() -> httpx2.Response:
            return self._http.request(
                method,
                self.server.url + path,
                params=params,
                json=json,
                content=None if content is None else iter(content()),
                headers=headers,
            )

        return self._until_answered(attempt)

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], read_s: float = READ_S
    ) -> Iterator[httpx2.Response]:
        """An answer that is read while it comes. What goes wrong after its head is httpx2's own error.

        Raises:
            RankwiseError: as for :meth:`send`.
        """
        timeout = httpx2.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s), read=read_s)
        request = self._http.build_request("GET", self.server.url + path, headers=headers, timeout=timeout)
        response = self._until_answered(lambda: self._http.send(request, stream=True))
        try:
            yield response
        finally:
            response.close()

    def _until_answered(self, attempt: Callable[[], httpx2.Response]) -> httpx2.Response:
        tried = 0
        while True:
            try:
                response = attempt()
                if response.is_success:
                    return response
                refusal, asked_s = self._refusal(response), _retry_after(response.headers)
                is_temporary = response.status_code in AGAIN and (asked_s or 0.0) <= LONGEST_RETRY_AFTER_S
            except httpx2.TransportError as error:
                refusal, asked_s = self._unreachable(error), None
                is_temporary = not isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError)
            if not is_temporary or tried == self._retries:
                raise refusal
            self._sleep(_pause_s(tried) if asked_s is None else asked_s)
            tried += 1

    def _refusal(self, response: httpx2.Response) -> RankwiseError:
        content = response.read()
        response.close()
        return error_of(response.status_code, content, url=str(response.request.url))

    def _unreachable(self, error: httpx2.TransportError) -> RemoteError:
        cause = str(error) or type(error).__name__
        return RemoteError(
            f"the server {self.server.url} cannot be reached: {cause}",
            next_step="see that it runs (rankwise serve) and that RANKWISE_URL names it",
        )


def _pause_s(tried: int) -> float:
    """Twice as long each time; not the same for all clients that lost their server at once."""
    longest = min(FIRST_PAUSE_S * 2.0**tried, LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds that the server asks to wait, given as such or as a date."""
    text: str = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
