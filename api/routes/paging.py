"""Cursors and sort orders of lists, as requests write them.

A cursor is where a page ended, for the order that it was sorted in. It is opaque to clients, and holds
nothing that they have not read. Knows nothing of what is listed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError

from ...store.listing import Position

Cursor = Annotated[
    str | None,
    Query(max_length=1000, description="`next_cursor` of the page before, asked in the same order."),
]


def write_cursor(sort: str, position: Position | None) -> str | None:
    """The cursor of a position; None at the end."""
    if position is None:
        return None
    value, key = position
    data = json.dumps([sort, value, key], separators=(",", ":"), default=str)
    return base64.urlsafe_b64encode(data.encode()).rstrip(b"=").decode()


def read_cursor(cursor: str | None, sort: str, *, kinds: tuple[type, ...]) -> Position | None:
    """The position that a cursor holds.

    Args:
        cursor: as it came with the page before.
        sort: in which this page is asked for.
        kinds: what the sorted value may be.

    Raises:
        RequestValidationError: it is none of ours, or of another order.
    """
    if cursor is None:
        return None
    try:
        data = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        data = None
    match data:
        case [str(of), value, int(key)] if isinstance(value, kinds) and not isinstance(value, bool):
            if of != sort:
                raise refused("cursor", f"this cursor is of the order {of}, not of {sort}", cursor)
            if 0 <= key < 2**63:
                return value, key
    raise refused("cursor", "this is no cursor of a page", cursor)


def read_sort(sort: str, choices: Collection[str]) -> tuple[str, bool]:
    """``-updated`` → ``updated``, and that it descends.

    Raises:
        RequestValidationError: it is none of the choices.
    """
    name = sort.removeprefix("-")
    if name not in choices:
        every = ", ".join(choices)
        raise refused("sort", f"choose one of {every}; with a minus before it the largest comes first", sort)
    return name, sort.startswith("-")


def next_path(request: Request, cursor: str | None, *, without: Collection[str] = ()) -> str | None:
    """Where the next page is: the same request with another cursor; None at the end."""
    if cursor is None:
        return None
    kept = [
        (name, value)
        for name, value in request.query_params.multi_items()
        if name != "cursor" and name not in without
    ]
    return f"{request.url.path}?{urlencode([*kept, ('cursor', cursor)])}"


def refused(parameter: str, message: str, value: Any) -> RequestValidationError:
    """What answers 422, pointing at a parameter of the query."""
    error = {"type": "parameter", "loc": ("query", parameter), "msg": message, "input": value}
    return RequestValidationError([error])
