"""Frozen types to plain JSON data and back, and the hashes that identify them.

Edges (API, command line, store, job reports) validate with :func:`from_json`. Knows no type in particular.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import InputError

T = TypeVar("T")


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Building one costs milliseconds, so each is kept."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def from_json(kind: type[T], data: Any) -> T:
    """Validate plain JSON data into one of the frozen types.

    Raises:
        InputError: naming every field that is wrong, not only the first.
    """
    try:
        validated: T = _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise _invalid(kind, error) from error
    return validated


def from_text(kind: type[T], text: str) -> T:
    """The same from a text of JSON, without Python's parser in between.

    Raises:
        InputError: as :func:`from_json`, and where the text is no JSON.
    """
    try:
        validated: T = _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise _invalid(kind, error) from error
    return validated


def _invalid(kind: type, error: ValidationError) -> InputError:
    problems = "; ".join(
        f"{'.'.join(map(str, item['loc'])) or kind.__name__}: {item['msg']} (got {item['input']!r:.80})"
        for item in error.errors()
    )
    return InputError(f"not a valid {kind.__name__}: {problems}")


def to_json(value: Any) -> Any:
    """A frozen type as plain JSON data: lists for tuples, strings for enumerations, ISO times."""
    return _adapter(type(value)).dump_python(value, mode="json")


FOR_PEOPLE: Mapping[str, Any] = {"identity": False}
"""Metadata of a field that no identity has."""

CAME_LATER: Mapping[str, Any] = {"identity": "unless default"}
"""Metadata of a field that is left out of identities where it has its default, so that those from before
there was such a field still hold."""


def identity(value: Any) -> dict[str, Any]:
    """Like :func:`to_json` for a dataclass, without fields marked as :data:`FOR_PEOPLE`, and without those
    that :data:`CAME_LATER` where they have their default."""
    form: dict[str, Any] = to_json(value)
    for item in dataclasses.fields(value):
        counts, part = item.metadata.get("identity", True), getattr(value, item.name)
        if not counts or (counts == CAME_LATER["identity"] and part == item.default):
            del form[item.name]
        elif dataclasses.is_dataclass(part):
            form[item.name] = identity(part)
    return form


def canonical_json(data: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN: equal data give equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON."""
    return _sha256(canonical_json(data))


def digest_of(members: Mapping[str, str]) -> str:
    """The same of an object whose members are canonical JSON already."""
    return _sha256("{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
