"""Checks a study request before it is stored: the same cheap look for HTTP, command line and Python.

Everything that is wrong is reported at once. Knows nothing of how the request arrived or is run; what
takes long (downloads, counting tokens, inspecting the model) is left to the study.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..optimizer.domain import LossMask, Method, Quantization, StudyRequest
from ..optimizer.recipe import LOSS_MASKS
from ..optimizer.spreading import most_processes
from ..probes.dataset import check_dataset
from ..probes.dataset_source import is_hub_dataset, resolve_dataset
from ..probes.factory import is_factory
from ..probes.host import read_hardware
from ..probes.model_source import is_hub_id, resolve_model
from ..probes.paths import nearest_names, resolve_path
from ..probes.profiles import TaskKind
from ..probes.tasks import check_asked
from .own_lora import problems_of
from .units import MAX_BYTES, MAX_SECONDS, MAX_SHARE, format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """An inclusive range, with the text that names its ends for people."""

    minimum: float
    maximum: float
    text: str


BOUNDS = {
    "memory_limit_bytes": Bounds(2**20, MAX_BYTES, f"{format_bytes(2**20)} to {format_bytes(MAX_BYTES)}"),
    "finish_limit_s": Bounds(1, MAX_SECONDS, f"{format_seconds(1)} to a year"),
    "quality_within": Bounds(0, MAX_SHARE, f"0 to {MAX_SHARE:.0%}, like 1%"),
    "price_per_hour": Bounds(0.001, 1_000_000, "0.001 to 1000000"),
    "processes": Bounds(1, 1024, "1 to 1024"),
    "budget_s": Bounds(1, MAX_SECONDS, f"{format_seconds(1)} to a year"),
    "max_trials": Bounds(1, 10_000, "1 to 10000"),
    "seed": Bounds(0, 2**63 - 1, "0 to 2**63 - 1"),
    "max_length": Bounds(8, 2**20, "8 to 1048576 tokens"),
    "effective_batch": Bounds(1, 65_536, "1 to 65536 rows"),
    "context_length": Bounds(1, 2**20, "1 to 1048576 rows"),
    "prediction_length": Bounds(1, 2**20, "1 to 1048576 rows"),
    "epochs": Bounds(0.001, 10_000, "0.001 to 10000"),
}
"""What the numbers of a request may be; the HTTP schema states the same ranges."""

MAX_TEMPLATE_BYTES = 100_000
"""Several times the longest chat template of a published model."""

_KINDS = {kind.value: kind for kind in TaskKind}


@dataclass(frozen=True, slots=True)
class RequestProblem:
    """One thing wrong with a request. ``field`` is a field of :class:`StudyRequest`, or of another body."""

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
    request: StudyRequest,
    *,
    roots: Sequence[Path] | None,
    allow_remote_code: bool = False,
    factories: Collection[str] | None = None,
) -> StudyRequest:
    """The request with absolute paths in place of local files, once everything about it looks right.

    Args:
        request: as the user wrote it.
        roots: folders that local files must lie in; None sets no restriction.
        allow_remote_code: the operator trusts code that comes with a model.
        factories: those whose code may run; None sets no restriction.

    Raises:
        InputError: the only problem itself (often a DatasetError, ModelError or PathNotAllowed), or an
            :class:`InvalidRequest` that holds them all.
    """
    checked, problems = examine_request(
        request, roots=roots, allow_remote_code=allow_remote_code, factories=factories
    )
    if len(problems) == 1:
        raise problems[0].error
    if problems:
        raise InvalidRequest(problems)
    return checked


def examine_request(
    request: StudyRequest,
    *,
    roots: Sequence[Path] | None,
    allow_remote_code: bool = False,
    factories: Collection[str] | None = None,
    locate: Callable[[str], str] = str,
) -> tuple[StudyRequest, tuple[RequestProblem, ...]]:
    """Like :func:`check_request`, with the problems returned: empty where the request may be stored.

    ``locate`` says where a dataset lies that is named in a way of its own, as uploads are.
    """
    problems = [
        *range_problems(request),
        *_weight_problems(request),
        *_combination_problems(request),
        *_process_problems(request),
    ]

    def looked_up(field: str, look_up: Callable[[str], str]) -> str:
        value: str = getattr(request, field)
        try:
            return look_up(value)
        except InputError as error:
            problems.append(RequestProblem(field, error))
            return value

    def model(source: str) -> str:
        if is_hub_id(source):
            return source
        found = resolve_model(
            source,
            allowed_roots=roots,
            allow_remote_code=allow_remote_code,
            arguments=request.model_arguments,
            allowed_factories=factories,
        )
        return source if found.factory else str(found.path)

    def dataset(source: str) -> str:
        check_asked(request.asked)
        source = locate(source)
        if is_hub_dataset(source):
            return source
        path = resolve_dataset(source, allowed_roots=roots)
        check_dataset(path, request.asked)
        return str(path)

    def command(words: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return _checked_command(words)
        except InputError as error:
            problems.append(RequestProblem("eval_command", error))
            return words

    checked = dataclasses.replace(
        request,
        eval_command=command(request.eval_command),
        model=looked_up("model", model),
        dataset=looked_up("dataset", dataset),
        model_folder=str(Path.cwd()) if is_factory(request.model) else None,
        chat_template=None
        if request.chat_template is None
        else looked_up("chat_template", lambda source: str(_checked_template(source, roots))),
    )
    return checked, tuple(problems)


def _checked_template(source: str, roots: Sequence[Path] | None) -> Path:
    """The absolute path of a file that can be a chat template."""
    path = resolve_path(source, roots)
    if not path.is_file():
        raise InputError(
            f"chat template {path} {'is no file' if path.exists() else 'does not exist'}",
            next_step=nearest_names(path) or "name a file with a Jinja template",
        )
    cause = None
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            cause = f"is larger than {MAX_TEMPLATE_BYTES:,} bytes"
        elif not path.read_text("utf-8").strip():
            cause = "is empty"
    except UnicodeDecodeError:
        cause = "is no text in UTF-8"
    except OSError as error:
        cause = f"cannot be read ({error.strerror})"
    if cause:
        raise InputError(f"chat template {path} {cause}", next_step="name a file with a Jinja template")
    return path


def _checked_command(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command with absolute paths: it will run in another folder."""
    if not words:
        return words
    program = shutil.which(words[0])
    if program is None:
        raise InputError(
            f"the program {words[0]!r} of the evaluation command is not found",
            next_step="name one that can be run from here, such as python judge.py",
        )
    arguments = (str(Path(word).absolute()) if Path(word).is_file() else word for word in words[1:])
    return (str(Path(program).absolute()), *arguments)


def _combination_problems(request: StudyRequest) -> Iterator[RequestProblem]:
    """Choices that contradict each other, whatever model and data are."""

    def problem(field: str, message: str, next_step: str) -> RequestProblem:
        return RequestProblem(field, InputError(message, next_step=next_step))

    if request.complexity is not None and not request.use_tiers:
        yield problem(
            "complexity",
            f"complexity {request.complexity.value!r} is asked by the tiers only",
            "ask for the tiers too, or leave it out",
        )
    begins = bool(request.presets or request.lora)
    if request.only_presets and not begins:
        yield problem("only_presets", "only presets are asked for, and none is named", "name a preset")
    if request.use_tiers and begins:
        yield problem("use_tiers", "the tiers leave no place for presets", "ask for one of the two")
    if request.eval_lower_is_better and not request.eval_command:
        yield problem(
            "eval_lower_is_better", "there is no number of which lower is better", "name an eval_command too"
        )
    if request.lora is not None:
        for error in problems_of(request.lora):
            yield RequestProblem("lora", error)
    unquantized = {Method.FULL, Method.BITFIT}
    if (
        request.methods
        and unquantized.issuperset(request.methods)
        and Quantization.NONE not in (request.quantizations or Quantization)
    ):
        what = (
            "full fine-tuning trains all weights"
            if Method.FULL in request.methods
            else "bitfit trains all biases"
        )
        yield problem(
            "quantizations",
            f"{what}, and those in {'/'.join(request.quantizations)} are frozen",
            "allow the quantization none, or a method with an adapter",
        )
    kind = _KINDS.get(request.task or "")
    if kind is None:
        return
    if request.packing and not kind.is_causal:
        yield problem("packing", f"samples of the task {kind} cannot be packed", "leave packing out")
    if kind.reads_arrays and request.max_length is not None:
        yield problem("max_length", f"rows of the task {kind} have no tokens", "leave max_length out")
    masks = LOSS_MASKS.get(kind, (LossMask.ALL,))
    if request.loss_mask is not None and request.loss_mask not in masks:
        yield problem(
            "loss_mask",
            f"the loss mask {request.loss_mask} does not suit the task {kind}",
            f"use {' or '.join(masks)}, or leave it out",
        )
    if request.chat_template is not None and kind is not TaskKind.CHAT:
        yield problem(
            "chat_template", f"the task {kind} has no conversations for a chat template", "leave it out"
        )


def _process_problems(request: StudyRequest) -> Iterator[RequestProblem]:
    """More processes than there are places for them, or than a step's rows can be shared out to."""
    wanted, batch = request.processes, request.effective_batch
    if wanted is None or wanted <= 1:
        return
    if batch % wanted:
        yield RequestProblem(
            "processes",
            InputError(
                f"{batch} rows per optimizer step cannot be shared out evenly to {wanted} processes",
                next_step=f"take an effective batch that is a multiple of {wanted}, or other processes",
            ),
        )
    hardware = read_hardware(Path.cwd())
    most = most_processes(hardware)
    if wanted > most:
        places = (
            f"{most} GPU{'' if most == 1 else 's'} alike" if hardware.gpus else f"{most} cores, and no GPU"
        )
        yield RequestProblem(
            "processes",
            InputError(
                f"{wanted} processes are asked for, and this machine has {places}",
                next_step=f"ask for at most {most}, or leave processes out",
            ),
        )


def range_problems(request: StudyRequest) -> Iterator[RequestProblem]:
    """Numbers that are out of their bounds."""
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
