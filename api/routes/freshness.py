"""``ETag`` and ``If-None-Match``: an answer that a client has already is not made again.

Tags are weak and made of marks (see :mod:`rankwise.store.marks`) before any document is read. They hold the
version of rankwise, since another one may write the same study otherwise. Knows nothing of what is read.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from ... import __version__
from ...store.marks import Mark

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "It is as If-None-Match says"}}
"""Of ``responses``, for the documentation of a route."""

CACHE_CONTROL = "private, no-cache"
"""Keep it, but ask each time whether it is still so."""


def fresh_tag(request: Request, *marks: Mark, also: Any = "") -> str:
    """The tag of what this request would read of studies with these marks."""
    told = [(mark.study_id, mark.state.value, mark.cancel_requested, mark.last_event) for mark in marks]
    asked = (request.url.path, request.url.query, request.headers.get("accept", ""))
    text = repr((__version__, asked, told, also))
    return f'W/"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"'


def unchanged(request: Request, response: Response, tag: str) -> Response | None:
    """304 where the client has this version; else None, and ``response`` is given the tag."""
    headers = {"ETag": tag, "Cache-Control": CACHE_CONTROL}
    if _matches(request.headers.getlist("if-none-match"), tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    response.headers.update(headers)
    return None


def json_answer(response: Response, document: BaseModel) -> Response:
    """The document with the headers of ``response``: written out as it is, since it was checked when made."""
    return Response(document.model_dump_json(), headers=response.headers, media_type="application/json")


def _matches(if_none_match: list[str], tag: str) -> bool:
    """Whether one of the tags is this one; weak comparison, as RFC 9110 has it for reads."""
    tags = [each.strip() for each in ",".join(if_none_match).split(",")]
    return "*" in tags or any(each.removeprefix("W/") == tag.removeprefix("W/") for each in tags)
