"""A study as a YAML file, read into options; everything that is wrong is told with its line.

Keys are those of ``rankwise recommend``, with ``_`` or ``-``, and the blocks ``lora`` and ``quantization``.
Knows nothing of command lines, nor of whether model and data exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from .asking import STUDY_KEYS, read_request
from .own_lora import nearest_key, read_own_lora
from .submission import range_problems

MAX_BYTES = 2**20

ALIASES = {
    "model_name": "model",
    "data": "dataset",
    "method": "methods",
    "channel": "channels",
    "preset": "presets",
    "tiers": "use_tiers",
    "model_args": "model_arguments",
    "finish_within": "finish_limit",
}
"""Other names of keys: those of the command line, and of other tools."""

BLOCKS = ("lora", "quantization")
PATHS = ("model", "dataset", "chat_template", "baseline")
_NOT_VALID = "not a valid StudyRequest: "

KEYS = (*STUDY_KEYS, *ALIASES, *BLOCKS)


@dataclass(frozen=True, slots=True)
class _Line:
    """A message about a line of the file; None is the whole."""

    number: int | None
    message: str
    next_step: str


def read_study_file(path: Path) -> dict[str, Any]:
    """Option → value as the file has it, once everything in it can be understood; keys are fields.

    Paths that exist beside the file are taken from there.

    Raises:
        InputError: the file cannot be read, or something in it is not understood; all of it at once.
    """
    node = _compose(path)
    found: list[_Line] = []
    values: dict[str, Any] = {}
    blocks: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    for key, value, inner in _entries(node, lines, found):
        field = ALIASES.get(key.replace("-", "_"), key.replace("-", "_"))
        lines[(field,)] = lines[(key,)]
        if field not in KEYS:
            found.append(_Line(lines[(key,)], f"key {key!r} is unknown", nearest_key(key, KEYS)))
        elif field in values or field in blocks:
            found.append(_Line(lines[(key,)], f"{field} is given twice", "keep one of them"))
        elif field in BLOCKS:
            blocks[field] = value
            lines |= {(field, *rest): line for rest, line in inner.items()}
        elif value is not None:
            values[field] = _beside(path, value) if field in PATHS else value
            found += _checked(field, values[field], lines[(key,)])
    own, problems = read_own_lora(blocks.get("lora"), blocks.get("quantization"))
    for problem in problems:
        line = lines.get(problem.path, lines.get(problem.path[:1]))
        found.append(_Line(line, problem.error.message, problem.error.next_step))
    if found:
        raise _refusal(path, found)
    if own is not None:
        values["lora"] = own
    return values


def _compose(path: Path) -> yaml.MappingNode:
    """The file's structure, which has line numbers; nothing is built of it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes", next_step="name a study file")
        node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(
            f"study file {path} cannot be read: {error.strerror}", next_step="rankwise init writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"study file {path} is no text in UTF-8", next_step="name a YAML file") from error
    except yaml.YAMLError as error:
        cause = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}:"
        raise InputError(f"study file {path}:{where} {cause}", next_step="correct the YAML there") from error
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"study file {path} holds no keys", next_step="rankwise init writes an example")
    return node


def _entries(
    node: yaml.MappingNode, lines: dict[tuple[str, ...], int], found: list[_Line]
) -> Iterator[tuple[str, Any, Mapping[tuple[str, ...], int]]]:
    """Key, value, and the lines of the keys within it; where keys stand is noted."""
    seen: set[str] = set()
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        try:
            key, value = str(_plain(key_node)), _plain(value_node)
        except yaml.YAMLError as error:
            cause = " ".join(str(getattr(error, "problem", None) or error).split())
            found.append(_Line(line, cause, "use plain values: text, numbers, true, false and lists"))
            continue
        if key in seen:
            found.append(_Line(line, f"{key} is given twice", "keep one of them"))
            continue
        seen.add(key)
        lines[(key,)] = line
        inner: dict[tuple[str, ...], int] = {}
        if isinstance(value_node, yaml.MappingNode):
            for inner_key, _ in value_node.value:
                name = (str(inner_key.value),)
                if name in inner:
                    at = inner_key.start_mark.line + 1
                    found.append(_Line(at, f"{key}.{name[0]} is given twice", "keep one of them"))
                inner[name] = inner_key.start_mark.line + 1
        yield key, value, inner


def _plain(node: yaml.Node) -> Any:
    """What a node stands for, in YAML's own types."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _checked(field: str, value: Any, line: int) -> Iterator[_Line]:
    """What is wrong with one value, alone."""
    try:
        request = read_request(**{"model": "", "dataset": "", field: value})
    except InputError as error:
        message = error.message.removeprefix(_NOT_VALID)
        yield _Line(line, message if message.startswith(field) else f"{field}: {message}", error.next_step)
    except TypeError:
        yield _Line(line, f"{field}: {value!r:.80} is not understood", "see rankwise init for its form")
    else:
        for problem in range_problems(request):
            yield _Line(line, problem.error.message, problem.error.next_step)


def _refusal(path: Path, found: list[_Line]) -> InputError:
    ordered = sorted(found, key=lambda each: each.number or 0)
    sentences = [
        f"{'' if each.number is None else f'line {each.number}: '}{each.message}"
        f"{f' ({each.next_step})' if each.next_step else ''}"
        for each in ordered
    ]
    count = "one problem" if len(sentences) == 1 else f"{len(sentences)} problems"
    return InputError(f"study file {path} has {count}: {'; '.join(sentences)}", next_step="correct the file")


def _beside(path: Path, value: Any) -> Any:
    """A path that exists beside the file, from there; anything else as it stands."""
    if isinstance(value, str) and not Path(value).is_absolute() and (path.parent / value).exists():
        return str(path.parent / value)
    return value
