"""Every error of the HTTP interface as ``application/problem+json`` (RFC 9457), decided in one place.

Knows the exception tree and HTTP's status codes; nothing of routes or of what they do.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import (
    Conflict,
    InputError,
    NotFound,
    NothingFits,
    PathNotAllowed,
    RankwiseError,
    RemoteError,
    StoreError,
)
from .request_schemas import POINTERS, UNIT_ERROR
from .submission import InvalidRequest
from .uploads import DiskFull, UploadTooLarge, UploadTooSlow

MEDIA_TYPE = "application/problem+json"

_STATUS_BY_ERROR: Sequence[tuple[type[RankwiseError], int]] = (
    (PathNotAllowed, HTTPStatus.FORBIDDEN),
    (UploadTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (UploadTooSlow, HTTPStatus.REQUEST_TIMEOUT),
    (DiskFull, HTTPStatus.INSUFFICIENT_STORAGE),
    (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (NothingFits, HTTPStatus.CONFLICT),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (RemoteError, HTTPStatus.BAD_GATEWAY),
    (RankwiseError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
"""The table of :mod:`rankwise.errors`; the first class that matches decides."""

MAX_DETAILS = 100
"""Mistakes that are listed one by one: a body of a mebibyte can hold a hundred thousand."""

_NEXT_STEPS: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "send one JSON object in UTF-8, not deeply nested",
    HTTPStatus.FORBIDDEN: "ask its owner or an admin, or use another token",
    HTTPStatus.NOT_FOUND: "/openapi.json lists every path",
    HTTPStatus.METHOD_NOT_ALLOWED: "use a method that the Allow header lists",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "send Content-Type: application/json",
}
"""What helps against errors that the framework raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDetail:
    """One thing that is wrong with a request."""

    location: str
    """``body``, ``query``, ``path`` or ``header``."""
    pointer: str
    """JSON pointer (RFC 6901) to the value within its location; empty for the whole of it."""
    message: str
    next_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What went wrong and what to do about it, as RFC 9457 puts it."""

    status: int
    title: str
    detail: str
    type: str = "about:blank"
    """``urn:rankwise:problem:…``, stable for programs; ``about:blank`` where the status says it all."""
    instance: str = ""
    """The path that was asked for."""
    next_step: str = ""
    errors: tuple[ProblemDetail, ...] = ()


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem on the wire. Non-ASCII is escaped: a lone surrogate in a request can be echoed."""
    body = json.dumps(dataclasses.asdict(problem), allow_nan=False).encode()
    return Response(body, problem.status, headers, MEDIA_TYPE)


def plain_problem(status: int, detail: str, *, next_step: str = "", instance: str = "") -> Problem:
    """A problem that HTTP itself knows, such as 404 or 413."""
    title = HTTPStatus(status).phrase
    return Problem(status=status, title=title, detail=detail, next_step=next_step, instance=instance)


def problem_of(error: RankwiseError, *, instance: str = "") -> Problem:
    """The problem that an error of rankwise is answered with.

    Of several errors the status is theirs where they agree, else 422.
    """
    details: tuple[ProblemDetail, ...] = ()
    causes: tuple[RankwiseError, ...] = (error,)
    if isinstance(error, InvalidRequest):
        causes = tuple(problem.error for problem in error.problems)
        details = tuple(
            ProblemDetail(
                location="body",
                pointer=POINTERS.get(problem.field, f"/{problem.field}"),
                message=problem.error.message,
                next_step=problem.error.next_step,
            )
            for problem in error.problems
        )
    statuses = {_status_of(cause) for cause in causes}
    kind = type(causes[0]) if len(causes) == 1 else type(error)
    words = re.findall("[A-Z][a-z]+", kind.__name__)
    return Problem(
        status=statuses.pop() if len(statuses) == 1 else HTTPStatus.UNPROCESSABLE_ENTITY,
        title=" ".join(words).capitalize(),
        detail=error.message,
        type=f"urn:rankwise:problem:{'-'.join(words).lower()}",
        instance=instance,
        next_step=error.next_step,
        errors=details,
    )


def problem_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems, for its documentation."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of ``app``, its own and the framework's, with a problem."""

    @app.exception_handler(RankwiseError)
    async def answer_rankwise_error(request: Request, error: RankwiseError) -> Response:
        return problem_response(problem_of(error, instance=request.url.path))

    @app.exception_handler(RequestValidationError)
    async def answer_invalid_shape(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        details = tuple(_detail_of(item) for item in found[:MAX_DETAILS])
        sentences = [f"{item.pointer or item.location}: {item.message}" for item in details]
        if len(found) > MAX_DETAILS:
            sentences.append(f"and {len(found) - MAX_DETAILS} more")
        return problem_response(
            Problem(
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
                title="Invalid request",
                detail="; ".join(sentences),
                type="urn:rankwise:problem:invalid-request",
                instance=request.url.path,
                next_step="correct what errors points at; /openapi.json describes every field",
                errors=details,
            )
        )

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> Response:
        detail, next_step = str(error.detail), _NEXT_STEPS.get(error.status_code, "")
        if detail == HTTPStatus(error.status_code).phrase:
            detail = f"{request.method} {request.url.path} is not served"
        problem = plain_problem(error.status_code, detail, next_step=next_step, instance=request.url.path)
        return problem_response(problem, error.headers)

    @app.exception_handler(Exception)
    async def answer_crash(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the server logs it
        problem = plain_problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "the server met an error that it did not expect",
            next_step="the server's log has the traceback",
            instance=request.url.path,
        )
        return problem_response(problem)


def _status_of(error: RankwiseError) -> int:
    return next(status for kind, status in _STATUS_BY_ERROR if isinstance(error, kind))


def _detail_of(item: Mapping[str, Any]) -> ProblemDetail:
    """One of pydantic's errors, with the value that was met where it is short enough to show."""
    location, *path = item["loc"]
    value, message = item["input"], item["msg"]
    if item["type"] == "json_invalid":
        message = f"not valid JSON at character {path.pop()}: {item['ctx']['error']}"
    elif item["type"] != UNIT_ERROR and isinstance(value, str | int | float | None):
        message = f"{message} (got {value!r:.80})"
    return ProblemDetail(
        location=str(location),
        pointer="".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path),
        message=message,
        next_step=item.get("ctx", {}).get("next_step", ""),
    )
