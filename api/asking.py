"""A request as people write it, on a command line or in Python, read into the domain's form.

Reads sizes, durations and the names of choices. Knows nothing of whether the request can be served.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from functools import partial
from os import PathLike, fspath
from typing import Any, TypedDict, TypeVar, Unpack

from ..errors import InputError
from ..optimizer.codec import from_json
from ..optimizer.domain import (
    Baseline,
    Complexity,
    LossMask,
    Method,
    Objective,
    OwnLora,
    Preset,
    Quantization,
    Scoring,
    StudyRequest,
    Weights,
)
from ..probes.profiles import TaskKind
from .baseline import frame_of, read_baseline
from .own_lora import read_own_lora
from .units import parse_bytes, parse_seconds, parse_share

Choice = TypeVar("Choice", bound=StrEnum)


class StudyOptions(TypedDict, total=False):
    """What may be asked beside model and data; what is left out has the default of :class:`StudyRequest`."""

    model_arguments: Mapping[str, Any]
    objective: str
    weights: Weights | str | None
    scoring: str
    memory_limit: str | int | None
    finish_limit: str | float | None
    quality_within: str | float | None
    price_per_hour: float | None
    processes: int | None
    budget: str | float
    max_trials: int
    seed: int
    task: str | None
    text_column: str | None
    context_column: str | None
    target_column: str | None
    label_column: str | None
    time_column: str | None
    channels: str | Collection[str]
    group_column: str | None
    eval_command: str | Sequence[str]
    eval_lower_is_better: bool
    context_length: int | None
    prediction_length: int | None
    max_length: int | None
    effective_batch: int
    epochs: float
    packing: bool | None
    loss_mask: str | None
    chat_template: str | PathLike[str] | None
    methods: str | Collection[str]
    quantizations: str | Collection[str]
    presets: str | Collection[str]
    lora: Mapping[str, Any] | OwnLora | None
    baseline: str | PathLike[str] | Mapping[str, Any] | Baseline | None
    only_presets: bool
    use_tiers: bool
    complexity: str | None


STUDY_KEYS = ("model", "dataset", *StudyOptions.__annotations__)
"""Everything that a study can be asked with."""


def read_request(
    model: str | PathLike[str], dataset: str | PathLike[str], **options: Unpack[StudyOptions]
) -> StudyRequest:
    """The request in the domain's form.

    Raises:
        TypeError: an argument that there is none of.
        InputError: a value that is not understood.
    """
    for name in options.keys() - StudyOptions.__annotations__.keys():
        raise TypeError(f"a study has no argument {name!r}")
    values = {_FIELDS.get(name, name): read_option(name, value) for name, value in options.items()}
    if values.get("baseline") is not None:
        values = frame_of(values["baseline"]) | values
    return from_json(StudyRequest, {"model": fspath(model), "dataset": fspath(dataset), **values})


def read_option(name: str, value: Any) -> Any:
    """One option in the domain's form, as far as people may write it in another; None stays as it is.

    Raises:
        InputError: the value is not understood.
    """
    return _READERS[name](value) if name in _READERS and value is not None else value


def parse_weights(text: str) -> Weights:
    """``speed=0.5,memory=0.1,quality=0.4``; a part that is not named counts nothing.

    Raises:
        InputError: an unknown or repeated part, or a value that is no number.
    """
    known = [item.name for item in dataclasses.fields(Weights)]
    hint = "write it like speed=0.5,memory=0.1,quality=0.4"
    values = dict.fromkeys(known, 0.0)
    named: set[str] = set()
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in known or name in named:
            what = "given twice" if name in named else f"unknown (known: {', '.join(known)})"
            raise InputError(f"weight {name!r} is {what} in the weights {text}", next_step=hint)
        named.add(name)
        try:
            values[name] = float(number)
        except ValueError:
            raise InputError(f"weight {name}={number!r} is not a number", next_step=hint) from None
    return Weights(**values)


def parse_arguments(texts: Collection[str], *, what: str = "model argument") -> dict[str, Any]:
    """Keyword arguments written as ``name=value``: values are JSON, else text.

    Raises:
        InputError: one has no name, or a name is given twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in arguments:
            wrong = "is given twice" if name in arguments else "is not of the form name=value"
            raise InputError(f"{what} {text!r} {wrong}", next_step="write it like depth=12")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def choice(kind: type[Choice], value: str) -> Choice:
    """A member of an enumeration, from itself or its text in any case."""
    try:
        return kind(value.strip().lower())
    except (AttributeError, ValueError):
        what = " ".join(re.findall("[A-Z][a-z]+", kind.__name__)).lower()
        raise InputError(f"{what} {value!r} is unknown", next_step=f"use one of {', '.join(kind)}") from None


def _choices(kind: type[Choice], values: str | Collection[str]) -> tuple[Choice, ...]:
    """Each once, in the order of writing; a single text is a choice of one."""
    names = [values] if isinstance(values, str) else values
    return tuple(dict.fromkeys(choice(kind, name) for name in names))


def _names(value: str | Collection[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _command(value: str | Sequence[str]) -> tuple[str, ...]:
    """Program and arguments, split as a shell would."""
    try:
        return tuple(shlex.split(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise InputError(
            f"the command {value!r} cannot be split into words: {str(error).lower()}",
            next_step="close its quotation marks",
        ) from None


def _weights(value: Weights | str | Mapping[str, float]) -> Weights:
    if isinstance(value, Mapping):
        return parse_weights(",".join(f"{part}={number}" for part, number in value.items()))
    return parse_weights(value) if isinstance(value, str) else value


def _own_lora(value: Mapping[str, Any] | OwnLora) -> OwnLora | None:
    """From the keys of a study file's block ``lora``; its ``quantization`` is the other, or its type."""
    if isinstance(value, OwnLora):
        return value
    quantization = value.get("quantization")
    own, problems = read_own_lora(
        {key: part for key, part in value.items() if key != "quantization"},
        {"type": quantization} if isinstance(quantization, str) else quantization,
    )
    if problems:
        raise InputError(
            "; ".join(problem.error.message for problem in problems),
            next_step="; ".join(dict.fromkeys(problem.error.next_step for problem in problems)),
        )
    return own


_FIELDS = {"memory_limit": "memory_limit_bytes", "finish_limit": "finish_limit_s", "budget": "budget_s"}
"""Fields of StudyRequest that are called differently because people write a unit."""

_READERS: Mapping[str, Callable[[Any], Any]] = {
    "objective": partial(choice, Objective),
    "weights": _weights,
    "scoring": partial(choice, Scoring),
    "memory_limit": parse_bytes,
    "finish_limit": parse_seconds,
    "quality_within": parse_share,
    "budget": parse_seconds,
    "task": partial(choice, TaskKind),
    "channels": _names,
    "eval_command": _command,
    "loss_mask": partial(choice, LossMask),
    "chat_template": fspath,
    "methods": partial(_choices, Method),
    "quantizations": partial(_choices, Quantization),
    "presets": partial(_choices, Preset),
    "lora": _own_lora,
    "baseline": read_baseline,
    "complexity": partial(choice, Complexity),
}
