"""YAML and JSON as plain data with the line of each key. Builds no objects, and follows nothing outwards.

Texts come from anybody: size, depth and what anchors grow to are limited; a key given twice is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import InputError

MAX_BYTES = 256 * 2**10
MAX_NODES = 50_000
"""Values that a file may come to once its anchors are written out: the longest known has a thousand."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_COLON = re.compile(r"\s*:")

Path = tuple[str, ...]
"""Keys from the outermost inwards."""


class Unreadable(InputError):
    """The text is no mapping that could be read; ``line`` says where, as far as that is known."""

    def __init__(self, message: str, *, next_step: str = "", line: int | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.line = line


@dataclass(frozen=True, slots=True)
class Lined:
    """A mapping with the lines of its keys."""

    keys: Mapping[str, Any]
    lines: Mapping[Path, int] = field(default_factory=dict)
    """From 1 on."""


def read_lined(text: str, name: str) -> Lined:
    """The mapping that a text holds, JSON if it begins like it, else YAML.

    Args:
        text: of at most :data:`MAX_BYTES` bytes.
        name: of the file, for messages.

    Raises:
        Unreadable: it is too large, is neither, holds no keys, or has one twice.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise Unreadable(f"{name} is larger than {MAX_BYTES:,} bytes", next_step="name a configuration file")
    try:
        lined = _json(text, name) if text.lstrip().startswith("{") else None
        lined = lined or _yaml(text, name)
    except RecursionError:
        raise Unreadable(f"{name} is nested too deeply", next_step="name a configuration file") from None
    if not lined.keys:
        raise Unreadable(f"{name} holds no keys", next_step="name a configuration file")
    return lined


def _json(text: str, name: str) -> Lined | None:
    """None where it is no JSON: YAML has mappings in braces too, and says better what is wrong."""

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
            raise Unreadable(f"{name} has the key {key!r:.80} twice", next_step="keep one of them")
        return found

    try:
        data = json.loads(text, object_pairs_hook=no_twins, parse_constant=_refuse_constant)
    except ValueError as error:
        if "\t" in text and isinstance(error, json.JSONDecodeError):
            # YAML forbids the tabs, and would complain of them in place of what is wrong.
            raise Unreadable(
                f"{name}: line {error.lineno}, column {error.colno}: {error.msg.lower()}",
                next_step="correct the JSON there",
                line=error.lineno,
            ) from None
        return None
    return Lined(data, dict(_json_lines(text)))


def _refuse_constant(constant: str) -> Any:
    raise Unreadable(f"{constant} is no number that JSON has", next_step="write a number")


def _json_lines(text: str) -> Iterator[tuple[Path, int]]:
    """Where keys of objects stand; what is inside of lists is passed over."""
    path: list[str] = []
    kinds: list[str] = []
    line, index = 1, 0
    while index < len(text):
        char = text[index]
        if char == "\n":
            line += 1
        elif char in "{[":
            kinds.append(char)
            path.append("")
        elif char in "}]":
            kinds.pop()
            path.pop()
        elif char == '"':
            end = _end_of_string(text, index)
            if kinds[-1:] == ["{"] and _COLON.match(text, end):
                path[-1] = json.loads(text[index:end])
                if "[" not in kinds:
                    yield tuple(path), line
            index = end
            continue
        index += 1


def _end_of_string(text: str, start: int) -> int:
    found = _STRING.match(text, start)
    return found.end() if found else len(text)


def _yaml(text: str, name: str) -> Lined:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise _yaml_error(error, name) from None
    except ValueError as error:
        raise Unreadable(f"{name}: {error}", next_step="save it as a text in UTF-8") from None
    if len(documents) > 1:
        raise Unreadable(f"{name} holds {len(documents)} documents", next_step="keep one of them")
    node = documents[0] if documents else None
    if not isinstance(node, yaml.MappingNode):
        raise Unreadable(f"{name} holds no keys", next_step="name a configuration file")
    _measure(node, name, {}, set())
    lines: dict[Path, int] = {}
    _note_lines(node, (), lines, name)
    loader = yaml.SafeLoader("")
    try:
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _yaml_error(error, name) from None
    except (ValueError, OverflowError) as error:
        raise Unreadable(f"{name}: a value cannot be read: {error}", next_step="correct it") from None
    finally:
        loader.dispose()
    return Lined({str(key): value for key, value in data.items()}, lines)


def _yaml_error(error: yaml.YAMLError, name: str) -> Unreadable:
    cause = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Unreadable(f"{name}: {cause}", next_step="correct the YAML")
    return Unreadable(
        f"{name}: line {mark.line + 1}, column {mark.column + 1}: {cause}",
        next_step="correct the YAML there",
        line=mark.line + 1,
    )


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)


def _measure(node: yaml.Node, name: str, sizes: dict[int, int], above: set[int]) -> int:
    """How many values it is with all anchors written out: each is looked at once."""
    if id(node) in above:
        raise Unreadable(f"{name} has an anchor within itself", next_step="write it out")
    if id(node) not in sizes:
        above.add(id(node))
        sizes[id(node)] = 1 + sum(_measure(child, name, sizes, above) for child in _children(node))
        above.discard(id(node))
    if sizes[id(node)] > MAX_NODES:
        raise Unreadable(f"{name} comes to more than {MAX_NODES:,} values", next_step="shorten it")
    return sizes[id(node)]


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int], name: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise Unreadable(f"{name}: line {line}: a key is no text", next_step="write a name", line=line)
        if key.value in seen and key.value != "<<":
            raise Unreadable(
                f"{name}: line {line}: the key {key.value!r:.80} is there twice",
                next_step="keep one of them",
                line=line,
            )
        seen.add(key.value)
        lines[(*path, key.value)] = line
        _note_lines(value, (*path, key.value), lines, name)
