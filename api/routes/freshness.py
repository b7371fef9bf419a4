"""``ETag`` and ``If-None-Match``: an answer that a client has, or that was made before, is not made anew.

Tags are weak and made of marks (see :mod:`rankwise.store.marks`) before any document is read. They hold the
version of rankwise, since another one may write the same study otherwise. Knows nothing of what is read.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
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


ANSWERS_BYTES = 16 * 2**20
"""That are kept of all answers together: what pages that people leave open ask for again and again."""


class Answers:
    """Answers as they were written, by their tags; those asked for last are kept longest."""

    def __init__(self, most_bytes: int = ANSWERS_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, tag: str) -> bytes | None:
        """The answer with this tag, if it is still there."""
        with self._lock:
            if (body := self._bodies.get(tag)) is not None:
                self._bodies.move_to_end(tag)
            return body

    def keep(self, tag: str, body: bytes) -> None:
        """Keep an answer, in place of those that nobody has asked for the longest."""
        with self._lock:
            self._bytes += len(body) - len(self._bodies.pop(tag, b""))
            self._bodies[tag] = body
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._bodies.popitem(last=False)[1])


def fresh_tag(request: Request, *marks: Mark, also: Any = "") -> str:
    """The tag of what this request would read of studies with these marks."""
    asked = (request.url.path, request.url.query, request.headers.get("accept", ""))
    text = repr((__version__, asked, [_told(mark) for mark in marks], also))
    return f'W/"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"'


def _told(mark: Mark) -> tuple[str, str, bool, int]:
    return mark.study_id, mark.state.value, mark.cancel_requested, mark.last_event


def study_texts(
    request: Request, marks: Sequence[Mark], write: Callable[[Sequence[str]], Mapping[str, bytes]]
) -> list[bytes]:
    """The documents of these studies as they are sent, each written once as long as its study stays as it is.

    Args:
        request: whose server keeps them.
        marks: of the studies.
        write: the documents of studies by id.
    """
    answers = _answers(request)
    found = {mark.study_id: answers.find(f"study {_told(mark)}") for mark in marks}
    missing = [study_id for study_id, text in found.items() if text is None]
    written = write(missing) if missing else {}
    for mark in marks:
        if mark.study_id in written:
            answers.keep(f"study {_told(mark)}", written[mark.study_id])
    return [found[mark.study_id] or written[mark.study_id] for mark in marks]


def known_answer(request: Request, response: Response, tag: str) -> Response | None:
    """304 where the client has this version, the answer where it was made before; else None, and ``response``
    is given the tag."""
    headers = {"ETag": tag, "Cache-Control": CACHE_CONTROL}
    if _matches(request.headers.getlist("if-none-match"), tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    response.headers.update(headers)
    body = _answers(request).find(tag)
    return None if body is None else _json(response, body)


def json_answer(request: Request, response: Response, document: BaseModel) -> Response:
    """The document with the headers of ``response``: written out as it is, since it was checked when made."""
    return text_answer(request, response, document.model_dump_json().encode())


def text_answer(request: Request, response: Response, body: bytes) -> Response:
    """The same of a document that is written already."""
    _answers(request).keep(response.headers["ETag"], body)
    return _json(response, body)


def _json(response: Response, body: bytes) -> Response:
    return Response(body, headers=response.headers, media_type="application/json")


def _answers(request: Request) -> Answers:
    answers: Answers = request.app.state.answers
    return answers


def _matches(if_none_match: list[str], tag: str) -> bool:
    """Whether one of the tags is this one; weak comparison, as RFC 9110 has it for reads."""
    tags = [each.strip() for each in ",".join(if_none_match).split(",")]
    return "*" in tags or any(each.removeprefix("W/") == tag.removeprefix("W/") for each in tags)
