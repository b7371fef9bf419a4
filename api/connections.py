"""Connections that are given up where nobody asks anything on them. Knows nothing of what is asked.

uvicorn waits as long as a client likes for the head of a request, and for what is left of a body that nobody
wants.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .problems import plain_problem, problem_response
from .security import SECURITY_HEADERS

PATIENCE_S = 20.0
"""From the connection, or the end of the last answer, to the end of the next request's head."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose patience ends.

    What a refused client goes on sending is thrown away meanwhile, so that it gets to read why.
    """

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        # asyncio sets this only on sockets that were made with their protocol's number, which few are.
        # Without it, the end of a short answer waits until its head is acknowledged: 40 ms on Linux.
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there already."""
        self._wait()
        super().on_response_complete()

    def handle_events(self) -> None:
        """Wait no more once a request's head is there."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Say as everything else is said that this was no request, or its head too long."""
        problem = plain_problem(
            HTTPStatus.BAD_REQUEST, msg, next_step="send HTTP/1.1 with a head of at most 16 KiB"
        )
        response = problem_response(problem, {**SECURITY_HEADERS, "Connection": "close"})
        for event in (
            h11.Response(status_code=problem.status, headers=response.raw_headers, reason=b"Bad Request"),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(PATIENCE_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
