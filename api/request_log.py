"""One line a request, and every line with its request: as JSON for machines, as text for people.

Never in it: headers, queries, bodies, cookies. What looks like a token is taken out of every line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .credentials import Caller, without_secrets
from .log_format import LogFormat

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
MAX_PATH = 256

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_STUDY = re.compile(r"/v1/studies/([0-9A-Z]{26})(?:/|$)")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


class RequestLog:
    """Names each request, by the client's own ``X-Request-ID`` where it sent one, and notes how it ended."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = sent if _ID.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        told: dict[str, Any] = {"status": None}

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                told["status"], told["location"] = message["status"], headers.get("location", "")
            await send(message)

        token = _current.set(request_id)
        began = time.perf_counter()
        try:
            await self.app(scope, receive, send_named)
        finally:
            _note(scope, told, time.perf_counter() - began)
            _current.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": _current.get(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps({key: value for key, value in line.items() if value is not None}))


class TextFormatter(logging.Formatter):
    """A record as people read it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it."""
        return without_secrets(super().format(record))


def configure_logging(form: LogFormat, stream: TextIO | None = None) -> None:
    """Send what this process logs to standard error, or elsewhere; not as uvicorn would."""
    handler = logging.StreamHandler(stream or sys.stderr)
    is_json = form is LogFormat.JSON
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO if is_json else logging.ERROR)


def _note(scope: Scope, told: dict[str, Any], duration_s: float) -> None:
    status = told["status"]
    caller: Caller | None = scope["state"].get("caller")
    path = scope["path"][:MAX_PATH]
    study = _STUDY.search(path) or _STUDY.search(told.get("location", ""))
    log.log(
        logging.ERROR if status is not None and status >= 500 else logging.INFO,
        "%s %r %s",
        scope["method"],
        path,
        "the client left" if status is None else status,
        extra={
            "fields": {
                "method": scope["method"],
                "path": path,
                "status": status,
                "duration_s": round(duration_s, 6),
                "caller": caller.name if caller else None,
                "study_id": study[1] if study else None,
                "client": (scope.get("client") or (None,))[0],
            }
        },
    )
