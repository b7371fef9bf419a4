"""Checks a study request before it is stored: the same cheap look for HTTP, command line and Python.

Everything that is wrong is reported at once. Knows nothing of how the request arrived or is run; what
takes long (downloads, counting tokens, inspecting the model) is left to the study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..optimizer.domain import StudyRequest
from ..probes.dataset import check_dataset, resolve_dataset
from ..probes.model_source import is_hub_id, resolve_model
from .units import MAX_BYTES, MAX_SECONDS, format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """An inclusive range, with the text that names its ends for people."""

    minimum: float
    maximum: float
    text: str


BOUNDS = {
    "memory_limit_bytes": Bounds(2**20, MAX_BYTES, f"{format_bytes(2**20)} to {format_bytes(MAX_BYTES)}"),
    "budget_s": Bounds(1, MAX_SECONDS, f"{format_seconds(1)} to a year"),
    "max_trials": Bounds(1, 10_000, "1 to 10000"),
    "seed": Bounds(0, 2**63 - 1, "0 to 2**63 - 1"),
    "max_length": Bounds(8, 2**20, "8 to 1048576 tokens"),
    "effective_batch": Bounds(1, 65_536, "1 to 65536 rows"),
    "epochs": Bounds(0.001, 10_000, "0.001 to 10000"),
}
"""What the numbers of a request may be; the HTTP schema states the same ranges."""


@dataclass(frozen=True, slots=True)
class RequestProblem:
    """One thing wrong with a request. ``field`` is a field of :class:`StudyRequest`."""

    field: str
    error: InputError


class InvalidRequest(InputError):
    """Several things are wrong with one request; ``problems`` holds each."""

    def __init__(self, problems: Sequence[RequestProblem]) -> None:
        super().__init__(
            "; ".join(problem.error.message for problem in problems),
            next_step="; ".join(dict.fromkeys(p.error.next_step for p in problems if p.error.next_step)),
        )
        self.problems = tuple(problems)


def check_request(
    request: StudyRequest, *, roots: Sequence[Path] | None, allow_remote_code: bool = False
) -> StudyRequest:
    """The request with absolute paths in place of local files, once everything about it looks right.

    Args:
        request: as the user wrote it.
        roots: folders that local files must lie in; None sets no restriction.
        allow_remote_code: the operator trusts code that comes with a model.

    Raises:
        InputError: the only problem itself (often a DatasetError, ModelError or PathNotAllowed), or an
            :class:`InvalidRequest` that holds them all.
    """
    checked, problems = examine_request(request, roots=roots, allow_remote_code=allow_remote_code)
    if len(problems) == 1:
        raise problems[0].error
    if problems:
        raise InvalidRequest(problems)
    return checked


def examine_request(
    request: StudyRequest, *, roots: Sequence[Path] | None, allow_remote_code: bool = False
) -> tuple[StudyRequest, tuple[RequestProblem, ...]]:
    """Like :func:`check_request`, with the problems returned: empty where the request may be stored."""
    problems = [*_range_problems(request), *_weight_problems(request)]
    model, dataset = request.model, request.dataset
    try:
        if not is_hub_id(model):
            found = resolve_model(model, allowed_roots=roots, allow_remote_code=allow_remote_code)
            model = str(found.path)
    except InputError as error:
        problems.append(RequestProblem("model", error))
    try:
        path = resolve_dataset(dataset, allowed_roots=roots)
        check_dataset(
            path,
            text_column=request.text_column,
            label_column=request.label_column,
            task=request.task,
        )
        dataset = str(path)
    except InputError as error:
        problems.append(RequestProblem("dataset", error))
    return dataclasses.replace(request, model=model, dataset=dataset), tuple(problems)


def _range_problems(request: StudyRequest) -> Iterator[RequestProblem]:
    for field, bounds in BOUNDS.items():
        value = getattr(request, field)
        if value is not None and not bounds.minimum <= value <= bounds.maximum:
            yield RequestProblem(
                field, InputError(f"{field} {value!r} is out of range", next_step=f"use {bounds.text}")
            )


def _weight_problems(request: StudyRequest) -> Iterator[RequestProblem]:
    if request.weights is not None:
        values = dataclasses.astuple(request.weights)
        if not (min(values) >= 0 and 0 < sum(values) < math.inf):
            yield RequestProblem(
                "weights",
                InputError(
                    f"weights {values} must be finite, not negative and not all zero",
                    next_step="use for example speed 0.4, memory 0.2, quality 0.4",
                ),
            )
