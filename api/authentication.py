"""Who a request is from, decided before anything of its body is read, as plain ASGI middleware.

Puts a :class:`.access.Caller` on ``request.state.caller``, or answers 401 or 403. Knows nothing of routes.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import StoreError
from .access import LOGIN_PATH, SAFE_METHODS, is_open, least_role, refusal
from .credentials import FRESH_S, LOCAL, Caller, Credentials
from .problems import plain_problem, problem_of, problem_response
from .rate_limit import Buckets, network_of

SESSION_COOKIE = "rankwise_session"
STRANGERS_SHARE = 0.1

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""What proxies add: the request comes from elsewhere, though the connection does not."""


_TO_LOGIN = f"""\
<!doctype html><html lang="en"><meta charset="utf-8"><title>rankwise</title>
<meta http-equiv="refresh" content="0; url={LOGIN_PATH}?next={{0}}">
<p>This server asks for a token: <a href="{LOGIN_PATH}?next={{0}}">log in</a>.</p></html>
"""
"""To people, whose browser asked for a page."""


class _Refusal(Exception):
    """Why a request is not served, for people; never with the secret that was sent."""

    def __init__(self, status: HTTPStatus, detail: str, next_step: str, challenge: str = "") -> None:
        super().__init__(detail)
        self.status, self.detail, self.next_step = status, detail, next_step
        self.headers = {"WWW-Authenticate": challenge} if challenge else {}


class _Ended(Exception):
    """An answer was broken off."""


class Authentication:
    """Finds out who asks.

    Args:
        app: what is asked.
        is_required: demand a token of everybody. If not, whoever comes without one is :data:`.LOCAL`,
            unless a proxy passed the request on.
        rate: requests a second of one token, and :data:`STRANGERS_SHARE` of it of one address without; 0 for
            any number. Those that need no token are not counted.
    """

    def __init__(self, app: ASGIApp, *, is_required: bool, rate: float = 0.0) -> None:
        self.app = app
        self.of_callers, self.of_strangers = Buckets(rate), Buckets(rate * STRANGERS_SHARE)
        self.is_required = is_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            try:
                caller = await self._caller(scope)
            except _Refusal:
                self._count(None, scope)
                raise
            self._count(caller, scope)
            _require_least(caller, scope)
        except _Refusal as refused:
            await _answer(refused, scope)(scope, receive, send)
        except StoreError as error:
            await problem_response(problem_of(error, instance=scope["path"]))(scope, receive, send)
        else:
            scope.setdefault("state", {})["caller"] = caller
            with suppress(_Ended):
                await self.app(scope, receive, send if caller is LOCAL else self._while_accepted(scope, send))

    def _while_accepted(self, scope: Scope, send: Send) -> Send:
        """Ends an answer that goes on and on, as streams do, once its caller is accepted no more."""
        looked_at = time.monotonic()

        async def send_on(message: Message) -> None:
            nonlocal looked_at
            if message.get("more_body") and time.monotonic() - looked_at >= FRESH_S:
                looked_at = time.monotonic()
                try:
                    await self._caller(scope)
                except _Refusal:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    raise _Ended from None
                except StoreError:
                    pass  # nobody can tell: the next look will
            await send(message)

        return send_on

    def _count(self, caller: Caller | None, scope: Scope) -> None:
        if caller is LOCAL:
            return
        if caller is not None and caller.token_id is not None:
            seconds = self.of_callers.take(caller.token_id)
        else:
            seconds = self.of_strangers.take(network_of((scope.get("client") or ("",))[0]))
        if seconds:
            refused = _Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "so many requests in so short a time are not served",
                "wait as long as Retry-After says; wait for events or Prefer: wait in place of asking again",
            )
            refused.headers["Retry-After"] = str(math.ceil(seconds))
            raise refused

    async def _caller(self, scope: Scope) -> Caller | None:
        """Who asks; None on open paths, where nobody needs to say."""
        headers = Headers(scope=scope)
        try:
            if headers.getlist("authorization"):
                return await _by_token(headers, scope)
            if (secret := session_in(headers)) and (caller := await _by_session(secret, headers, scope)):
                return caller
        except (_Refusal, StoreError):
            if is_open(scope["path"]):
                return None
            raise
        passed_on = any(name in headers for name in _FORWARDED)
        if not self.is_required and not passed_on:
            return LOCAL
        if is_open(scope["path"]):
            return None
        if secret:
            raise _unauthenticated("the session has ended", "log in again", error="invalid_token")
        why = "a proxy passed this request on, so it" if not self.is_required else "this server"
        raise _unauthenticated(
            f"{why} needs a token", "send the header Authorization: Bearer with a token after it"
        )


def session_in(headers: Headers) -> str | None:
    """The secret of a browser's session, if its cookie came along."""
    for header in headers.getlist("cookie"):
        if secret := cookie_parser(header).get(SESSION_COOKIE):
            return secret
    return None


async def _by_token(headers: Headers, scope: Scope) -> Caller:
    scheme, _, secret = headers["authorization"].partition(" ")
    if len(headers.getlist("authorization")) > 1 or scheme.lower() != "bearer":
        raise _unauthenticated(
            "the Authorization header is no bearer token", "send Authorization: Bearer with a token after it"
        )
    caller = await _credentials(scope).caller_of(secret.strip())
    if caller is None or caller.is_session:
        raise _unauthenticated(
            "the token is unknown, was revoked or has expired",
            "ask the operator for one, who makes it with `rankwise tokens create`",
            error="invalid_token",
        )
    return caller


async def _by_session(secret: str, headers: Headers, scope: Scope) -> Caller | None:
    """Who began this session. A browser sends its cookie whoever made it write, so it has to say who did."""
    caller = await _credentials(scope).caller_of(secret)
    if caller is None or not caller.is_session:
        return None
    if scope["method"] not in SAFE_METHODS and not (
        "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
    ):
        raise _Refusal(
            HTTPStatus.FORBIDDEN,
            "a request with a session's cookie changes things only from this server's own pages",
            "programs send a token as Authorization: Bearer instead",
        )
    return caller


def _credentials(scope: Scope) -> Credentials:
    credentials: Credentials = scope["app"].state.credentials
    return credentials


def _require_least(caller: Caller | None, scope: Scope) -> None:
    least = least_role(scope["method"], scope["path"])
    if caller is not None and not caller.role.includes(least):
        raise _Refusal(
            HTTPStatus.FORBIDDEN,
            refusal(caller, least, f"{scope['method']} {scope['path']}"),
            f"use a token whose role is {least}",
        )


def _unauthenticated(detail: str, next_step: str, *, error: str = "") -> _Refusal:
    challenge = 'Bearer realm="rankwise"' + (f', error="{error}"' if error else "")
    return _Refusal(HTTPStatus.UNAUTHORIZED, detail, next_step, challenge)


def _answer(refused: _Refusal, scope: Scope) -> Response:
    headers = refused.headers
    is_page = scope["method"] == "GET" and not scope["path"].startswith("/v1/")
    if (
        is_page
        and refused.status is HTTPStatus.UNAUTHORIZED
        and "text/html" in Headers(scope=scope).get("accept", "")
    ):
        query = scope["query_string"].decode("latin-1")
        asked = scope["path"] + (f"?{query}" if query else "")
        return HTMLResponse(_TO_LOGIN.format(quote(asked, safe="")), refused.status, headers)
    problem = plain_problem(
        refused.status, refused.detail, next_step=refused.next_step, instance=scope["path"]
    )
    return problem_response(problem, headers)
