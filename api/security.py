"""Guards in front of the HTTP interface, as plain ASGI middleware: from which pages, and how much is taken.

Knows nothing of routes or of who asks. A page on another site can make a browser send requests to this
machine: the Host check stops names that were pointed here (DNS rebinding), the Origin check forged writes,
and what browsers say of where a request comes from (Fetch Metadata) stops reads that cost something.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from http import HTTPStatus

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import plain_problem, problem_response

MAX_BODY_BYTES = 2**20
BODY_S = 30.0
"""How long a body may take to arrive."""
ANY_HOST = "*"

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


STRICT_TRANSPORT = "max-age=31536000"
"""Only said where the request came encrypted: a browser that was told so never comes otherwise again."""


class SecurityHeaders:
    """Adds :data:`SECURITY_HEADERS` to every response that does not set them itself.

    Pages say themselves what they may load; nothing else is loaded by anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if scope.get("scheme") == "https":
                    headers.setdefault("Strict-Transport-Security", STRICT_TRANSPORT)
            await send(message)

        await self.app(scope, receive, send_guarded)


class SameSite:
    """Refuses requests whose Host is none of ``allowed_hosts``, or whose Origin is another site.

    Args:
        allowed_hosts: names without port, or ``*`` for any. The port may differ, as it does behind an SSH
            tunnel; an Origin must then name the same one, since pages on other local ports are other sites.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.allowed_hosts = frozenset(name.lower() for name in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            problem = plain_problem(
                HTTPStatus.FORBIDDEN,
                refusal,
                next_step="address it by its name, such as localhost, or start it with --allow-host",
                instance=scope["path"],
            )
            await problem_response(problem)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        name = _name_of(hosts[0]) if len(hosts) == 1 else ""
        if not name or not {name, ANY_HOST} & self.allowed_hosts:
            return f"Host {', '.join(hosts)!r:.80} is not this server"
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
                return f"Origin {origin!r:.80} is another site"
        is_followed_link = headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_followed_link:
            return "a page of another site made the browser ask"
        return None


class BodyLimit:
    """Reads a request's body up to ``max_bytes`` before the app sees it; answers 413 beyond, 408 where it
    takes longer than ``seconds`` to arrive.

    The length that the client declares is checked first, what arrives is counted in any case. Behind
    ``authentication.py``, so that nothing of strangers is kept. Routes (method, path) that are ``streamed``
    count for themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        seconds: float = BODY_S,
        streamed: Collection[tuple[str, str]] = (),
    ) -> None:
        self.app = app
        self.streamed = frozenset(streamed)
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) in self.streamed:
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        body = bytearray()
        more = True
        too_large = declared.isdecimal() and int(declared) > self.max_bytes
        with anyio.move_on_after(self.seconds) as patience:
            while more and not too_large:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
                too_large = len(body) > self.max_bytes
        problem = None
        if too_large:
            problem = plain_problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is larger than {self.max_bytes} bytes",
                next_step="send paths of models and datasets, not their content",
                instance=scope["path"],
            )
        elif patience.cancelled_caught:
            problem = plain_problem(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body took longer than {self.seconds:g} s to arrive",
                next_step="send it at once",
                instance=scope["path"],
            )
        if problem is not None:
            await problem_response(problem)(scope, receive, send)
            return

        replayed = False

        async def receive_replayed() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, receive_replayed, send)


def _name_of(host: str) -> str:
    """``LOCALHOST:8000`` → ``localhost``, ``[::1]:8000`` → ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
