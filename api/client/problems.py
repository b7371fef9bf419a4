"""Answers that are errors, turned back into the exceptions that the server raised.

Knows the exception tree and problem documents; nothing of requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from http.client import responses as phrases
from typing import Any

from ... import errors
from ...errors import Conflict, InputError, NotFound, RankwiseError, RemoteError

PROBLEM_TYPE = "urn:rankwise:problem:"
_TOKEN_STEP = "set RANKWISE_TOKEN, or RANKWISE_TOKEN_FILE to a file that holds the token"  # noqa: S105


def _slug(name: str) -> str:
    """``DatasetError`` → ``dataset-error``."""
    return "-".join(re.findall("[A-Z][a-z]+", name)).lower()


_KINDS: Mapping[str, type[RankwiseError]] = {
    _slug(name): kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RankwiseError)
}


def error_of(status: int, content: bytes, *, url: str) -> RankwiseError:
    """The exception that an answer stands for.

    Args:
        status: of HTTP, 400 or more.
        content: the body; a problem document, or whatever a proxy put there.
        url: that was asked, for answers that say nothing themselves.
    """
    problem = _problem_in(content)
    if problem is None:
        step = "check RANKWISE_URL: what answers there does not speak as rankwise does"
        return RemoteError(f"{url} answered {status} {phrases.get(status, '')}".rstrip(), next_step=step)
    message = str(problem.get("detail") or problem.get("title") or f"{url} answered {status}")
    step = str(problem.get("next_step") or "")
    if status == HTTPStatus.UNAUTHORIZED:
        step = _TOKEN_STEP
    if several := _several(problem):
        return several
    slug = str(problem.get("type", "")).removeprefix(PROBLEM_TYPE)
    return (_KINDS.get(slug) or _kind_of(status))(message, next_step=step)


def _problem_in(content: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) and ("detail" in found or "title" in found) else None


def _several(problem: Mapping[str, Any]) -> RankwiseError | None:
    """Each mistake of a request by itself, as the command line shows its own."""
    details = problem.get("errors") or ()
    if not isinstance(details, list) or not details or not all(isinstance(each, dict) for each in details):
        return None
    from ..submission import InvalidRequest, RequestProblem

    return InvalidRequest(
        [
            RequestProblem(
                field=str(each.get("pointer", "")),
                error=InputError(
                    f"{each['pointer']}: {each.get('message', '')}"
                    if each.get("pointer")
                    else str(each.get("message", "")),
                    next_step=str(each.get("next_step", "")),
                ),
            )
            for each in details
        ]
    )


def _kind_of(status: int) -> type[RankwiseError]:
    if status == HTTPStatus.NOT_FOUND:
        return NotFound
    if status == HTTPStatus.CONFLICT:
        return Conflict
    is_ours = status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS
    return InputError if is_ours else RemoteError
