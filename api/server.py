"""The process's HTTP server: uvicorn, whose open streams end when it is told to. Knows nothing of routes."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence

import uvicorn

from .app import Application
from .connections import PatientProtocol

GRACEFUL_SHUTDOWN_S = 5
"""For answers that are under way. Streams and waits end at once."""
SWITCH_S = 0.001
"""After so long, a thread that computes lets another one go on: Python's own is 5 ms, several times in each
short answer that is given while a long ranking is worked out."""


class Server(uvicorn.Server):
    """Serves one application until SIGTERM or Ctrl-C."""

    def __init__(self, app: Application, *, trusted_proxies: Sequence[str] = ()) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                ws="none",
                timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
                log_config=None,  # what is logged, request_log.py decides
                access_log=False,
                server_header=False,
                forwarded_allow_ips=["127.0.0.1", "::1", *trusted_proxies],
            )
        )
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Describe the interface meanwhile: whoever asks for that first need not wait a second."""
        sys.setswitchinterval(SWITCH_S)
        await super().startup(sockets)
        asyncio.get_running_loop().run_in_executor(None, self._app.description_text)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams first: their clients would hold the server for as long as they like."""
        await self._app.state.lookout.close()
        await super().shutdown(sockets)
