"""From an estimate that is asked for to its answer: for the command line, HTTP and Python alike.

Imports no torch. Knows nothing of how a dry run works, nor of terminals.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..errors import InputError
from ..home import Home
from ..optimizer.adapters import warnings_for
from ..optimizer.codec import from_json
from ..optimizer.domain import Candidate, Method, Quantization, Trial
from ..optimizer.estimates.communication import GPUS_A_NODE, NO_TRAFFIC, time_of
from ..optimizer.estimates.estimate import Memory, Target, breakdown_of, fits, memory_of, speed_of
from ..optimizer.estimates.gpus import Gpu, find_gpu, smallest_first
from ..optimizer.estimates.intervals import Fits
from ..optimizer.estimates.overheads import TRAINING_THREADS, cublas_workspace_bytes
from ..optimizer.estimates.prediction import Prediction, Terms
from ..optimizer.estimates.settings import Settings, setting_problems
from ..optimizer.estimates.trials import Learnt, learnt_from
from ..optimizer.sizes import trainable_parameters
from ..probes.host import read_host
from ..probes.model_source import is_hub_id, resolve_model
from ..probes.profiles import TaskKind
from ..runners.jobs import Estimation, estimate_once
from .asking import choice
from .own_lora import simple_expression
from .request_schemas import MOST_TOKENS
from .response_schemas.estimates import Between, EstimateDocument, GpuChoice
from .response_schemas.studies import ModelSummary
from .submission import BOUNDS, InvalidRequest, RequestProblem
from .units import format_bytes, parse_bytes

CHOICES = 4
"""GPUs that are told where the smallest one is asked for: it and the next few."""

SECONDS_PER_HOUR = 3600
VERDICTS: Mapping[Fits, Any] = {Fits.YES: "yes", Fits.NO: "no", Fits.TOO_CLOSE: "too-close"}
STACK = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")
"""Libraries that decide what a training allocates."""

_FLASH_CAPABILITY = (8, 0)
"""The least that FlashAttention-2 runs on (its README)."""

_OPTION_OF = {
    "use_rslora": "rslora",
    "use_dora": "dora",
    "micro_batch": "batch_size",
    "accumulation": "gradient_accumulation",
    "length": "seq_len",
}
"""Fields of :class:`Settings` that people know by another name."""


class EstimateOptions(TypedDict, total=False):
    """What may be asked beside the model; what is left out has the default of :class:`Settings`."""

    task: str | None
    method: str
    rank: int | None
    alpha: float | None
    targets: str
    rslora: bool
    dora: bool
    quantization: str
    double_quantization: bool
    precision: str
    gradient_checkpointing: bool
    attention: str | None
    loss: str
    optimizer: str
    batch_size: int
    gradient_accumulation: int
    seq_len: int | None
    padded: bool
    packed: bool
    zero_stage: int
    fsdp: bool
    offload: str
    gpus: int
    gpu: str | None
    memory_limit: str | int | None
    which_gpu: bool
    every_gpu: bool
    largest: bool
    tokens: int | None
    epochs: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an estimate is asked for, understood."""

    model: str
    task: TaskKind | None = None
    settings: Settings
    gpu: Gpu | None = None
    limit_bytes: int | None = None
    which_gpu: bool = False
    every_gpu: bool = False
    """Judge the GPUs of the catalogue beside what was asked about."""
    largest: bool = True
    """Look for the largest batch and the longest rows, which takes several times as long."""
    tokens: int | None = None
    """That the training goes through, all epochs together."""

    @property
    def looks_at_gpus(self) -> bool:
        """More than the named one of the catalogue's."""
        return self.which_gpu or self.every_gpu


Ask = Callable[[Sequence[Terms], int | None], Estimation]
"""Runs the job for a question: terms, and after how many that fit it may end."""

TrialsOn = Callable[[str], Sequence[Trial]]
"""Name of a device in the catalogue → trials on it that had been estimated before."""


def _targets(text: str) -> str:
    if text.startswith("re:"):
        simple_expression(text.removeprefix("re:"))
    return text


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "task": partial(choice, TaskKind),
    "targets": _targets,
    "method": partial(choice, Method),
    "quantization": partial(choice, Quantization),
    "gpu": find_gpu,
    "memory_limit": parse_bytes,
}


def read_question(
    model: str | PathLike[str],
    *,
    roots: Sequence[Path] | None = None,
    allow_remote_code: bool = False,
    **options: Unpack[EstimateOptions],
) -> Question:
    """The question, if it makes sense as far as can be told at once.

    Args:
        model: a folder, a ``config.json`` or a hub id; the latter is not looked for yet.
        roots: folders that a local model must lie in; None sets no restriction.
        allow_remote_code: the operator trusts code that comes with a model.

    Raises:
        TypeError: an argument that there is none of.
        InvalidRequest: with everything that is wrong.
    """
    for name in options.keys() - EstimateOptions.__annotations__.keys():
        raise TypeError(f"an estimate has no argument {name!r}")
    source, problems = fspath(model), []
    if not is_hub_id(source):
        try:
            resolve_model(source, allowed_roots=roots, allow_remote_code=allow_remote_code)
        except InputError as error:
            problems.append(RequestProblem("model", error))
    values: dict[str, Any] = {}
    for name, value in options.items():
        try:
            values[name] = _READERS[name](value) if name in _READERS and value is not None else value
        except InputError as error:
            problems.append(RequestProblem(name, error))
    fields = {field.name: _OPTION_OF.get(field.name, field.name) for field in dataclasses.fields(Settings)}
    settings = from_json(
        Settings, {field: values[option] for field, option in fields.items() if option in values}
    )
    problems += [RequestProblem(fields[field], error) for field, error in setting_problems(settings)]
    problems += _target_problems(options)
    if problems:
        raise InvalidRequest(problems)
    tokens = values.get("tokens")
    return Question(
        model=source,
        task=values.get("task"),
        settings=settings,
        gpu=values.get("gpu"),
        limit_bytes=values.get("memory_limit"),
        which_gpu=values.get("which_gpu", False),
        every_gpu=values.get("every_gpu", False),
        largest=values.get("largest", True),
        tokens=None if tokens is None else round(tokens * values.get("epochs", 1.0)),
    )


def _target_problems(options: EstimateOptions) -> Iterator[RequestProblem]:
    """What is wrong with where it is to run, and for how long."""

    def problem(field: str, message: str, next_step: str) -> RequestProblem:
        return RequestProblem(field, InputError(message, next_step=next_step))

    gpu, which_gpu = options.get("gpu"), options.get("which_gpu", False)
    if which_gpu and gpu is not None:
        yield problem(
            "which_gpu", "the smallest GPU was asked for, and one was named", "leave one of them out"
        )
    if which_gpu and (options.get("every_gpu") or not options.get("largest", True)):
        yield problem(
            "which_gpu",
            "the smallest GPU is looked for with its largest batch, and without the others",
            "ask for every_gpu, or for largest: false, without it",
        )
    if which_gpu and options.get("memory_limit") is not None:
        yield problem(
            "memory_limit", "GPUs of the catalogue are judged by their own memory", "leave the limit out"
        )
    tokens, epochs = options.get("tokens"), options.get("epochs", 1.0)
    if tokens is not None and not 1 <= tokens <= MOST_TOKENS:
        yield problem("tokens", f"{tokens} tokens are not a dataset", f"give 1 to {MOST_TOKENS:,}")
    if not BOUNDS["epochs"].minimum <= epochs <= BOUNDS["epochs"].maximum:
        yield problem("epochs", f"epochs {epochs} are out of range", f"use {BOUNDS['epochs'].text}")
    if tokens is not None and gpu is None and not which_gpu:
        yield problem("tokens", "how long it takes depends on the GPU", "name one, or ask which GPU to take")


def no_trials(_: str) -> Sequence[Trial]:
    """Nothing was measured on any device."""
    return ()


@contextmanager
def _trials_of(home: Home) -> Iterator[TrialsOn]:
    """What the store of this home knows of devices: nothing where there is none yet."""
    if isinstance(home.database, Path) and not home.database.exists():
        yield no_trials
        return
    from ..store import Store

    with closing(Store.open(home.database)) as store:
        yield store.list_estimated


def answer(question: Question, ask: Ask, trials_on: TrialsOn = no_trials) -> EstimateDocument:
    """Have the job run, and judge what it says by what trials on these devices have shown.

    Raises:
        InputError: the candidate cannot be run, or no GPU of the catalogue can compute in its dtype.
        RunnerError: the job could not be run.
    """
    started_s = time.perf_counter()
    usable, left_out = _usable_gpus(question.settings) if question.looks_at_gpus else ([], ())
    asked = usable if question.which_gpu else [question.gpu]
    of_catalogue = dataclasses.replace(question, limit_bytes=None, largest=False)
    held = [_held(question, gpu, trials_on) for gpu in asked]
    others = [_held(of_catalogue, gpu, trials_on) for gpu in usable if question.every_gpu]
    # GPUs of one generation need the same, where no largest batch is looked for: each need is told once.
    own, shared = [each.terms for each in held], list(dict.fromkeys(each.terms for each in others))
    found = ask([*own, *shared], CHOICES if question.which_gpu else None)
    shape = found.model.image_shape
    judged = [_Judged(each, it, shape) for each, it in zip(held, found.predictions, strict=False)]
    needs = dict(zip(shared, found.predictions[len(own) :], strict=False))
    every = [_Judged(each, needs[each.terms], shape) for each in others]
    fitting = [each for each in judged if each.fits is Fits.YES]
    # Where nothing fits, the largest GPU shows by how much.
    best = fitting[0] if question.which_gpu and fitting else judged[-1]
    libraries = read_host(Path(found.model.path)).libraries
    return EstimateDocument(
        **best.figures(),
        model=ModelSummary.model_validate(found.model, from_attributes=True),
        task=found.task.kind,
        asked=_asked(question),
        candidate=best.candidate,
        description=best.candidate.describe(),
        stack={name: version for name, version in libraries.items() if name in STACK},
        trainable_params=trainable_parameters(best.candidate.adapter, found.model),
        choices=tuple(
            each.choice(each.target.gpu) for each in fitting if question.which_gpu and each.target.gpu
        ),
        every_gpu=tuple(each.choice(each.target.gpu) for each in every if each.target.gpu),
        notes=(
            *left_out,
            *best.notes(has_choice=bool(fitting)),
            *warnings_for(best.candidate, found.model),
        ),
        seconds_spent=time.perf_counter() - started_s,
    )


@dataclasses.dataclass(frozen=True)
class _Held:
    """What a candidate is to be held against."""

    question: Question
    target: Target
    learnt: Learnt

    @property
    def terms(self) -> Terms:
        capability = None if self.target.gpu is None else self.target.gpu.compute_capability
        return Terms(
            workspaces=(cublas_workspace_bytes(capability),) * TRAINING_THREADS,
            limit_bytes=self.target.limit_for_allocator_bytes if self.question.largest else None,
        )


def _held(question: Question, gpu: Gpu | None, trials_on: TrialsOn) -> _Held:
    learnt = Learnt() if gpu is None else learnt_from(trials_on(gpu.name), gpu)
    target = Target(
        gpu=gpu,
        limit_bytes=question.limit_bytes,
        gpus=question.settings.gpus,
        efficiency=learnt.efficiency,
        factors=(learnt.allocated, learnt.reserved),
    )
    return _Held(question, target, learnt)


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What a candidate needs, held against one target."""

    against: _Held
    prediction: Prediction
    image_shape: tuple[int, int, int] | None
    """Channels, height and width, where images are read and no text."""

    @property
    def question(self) -> Question:
        return self.against.question

    @property
    def target(self) -> Target:
        return self.against.target

    @property
    def candidate(self) -> Candidate:
        return self.prediction.candidate

    @property
    def memory(self) -> Memory:
        return memory_of(self.prediction.need, self.target)

    @property
    def fits(self) -> Fits | None:
        return fits(self.memory, self.target)

    @property
    def speed(self) -> Between | None:
        recipe = self.candidate.recipe
        if recipe.max_length is None or self.question.settings.offload != "none":
            return None
        tokens = recipe.effective_batch * recipe.max_length / self.target.gpus
        speed = speed_of(self.prediction.work, tokens, self.target, self.prediction.traffic)
        if speed is None:
            return None
        return Between(low=speed.tokens_per_s_low, mid=speed.tokens_per_s_mid, high=speed.tokens_per_s_high)

    @property
    def sending_s(self) -> Between | None:
        """What a step sends, if nothing else is done meanwhile."""
        traffic, gpu = self.prediction.traffic, self.target.gpu
        if gpu is None or traffic == NO_TRAFFIC:
            return None
        time = time_of(traffic, gpu, self.target.gpus)
        return Between(low=time.low_s, mid=time.mid_s, high=time.high_s)

    @property
    def sending_share(self) -> Between | None:
        """Of such a step's time."""
        seconds, gpu = self.sending_s, self.target.gpu
        if seconds is None or gpu is None:
            return None
        work = self.prediction.work
        alone = speed_of(work, 1.0, self.target, NO_TRAFFIC)
        if alone is None:
            return None
        return Between(
            low=seconds.low / (seconds.low + 1 / alone.tokens_per_s_low),
            mid=seconds.mid / (seconds.mid + alone.step_s),
            high=seconds.high / (seconds.high + 1 / alone.tokens_per_s_high),
        )

    @property
    def hours(self) -> Between | None:
        speed, tokens = self.speed, self.question.tokens
        if speed is None or tokens is None:
            return None
        each = tokens / self.target.gpus / SECONDS_PER_HOUR
        return Between(low=each / speed.high, mid=each / speed.mid, high=each / speed.low)

    def figures(self) -> dict[str, Any]:
        """The fields of the answer that depend on the target."""
        need, memory, verdict = self.prediction.need, self.memory, self.fits
        sizes = {
            "peak_allocated_bytes": memory.allocated,
            "peak_reserved_bytes": memory.reserved,
            "device_bytes": memory.device,
        }
        return {
            "gpu": self.target.gpu and self.target.gpu.name,
            "gpu_sources": self.target.gpu.sources if self.target.gpu else (),
            "gpus": self.target.gpus,
            "capacity_bytes": self.target.capacity_bytes,
            "fits": None if verdict is None else VERDICTS[verdict],
            **{name: size.mid for name, size in sizes.items()},
            **{f"{name}_low": size.low for name, size in sizes.items()},
            **{f"{name}_high": size.high for name, size in sizes.items()},
            "calibrated": memory.calibrated,
            "phases": {phase.value: size for phase, size in need.by_phase.items()},
            "breakdown": breakdown_of(need, self.target, self.candidate.adapter.method),
            "max_micro_batch": self.prediction.max_micro_batch,
            "max_seq_len": self.prediction.max_length,
            "tokens_per_second": self.speed,
            "hours": self.hours,
            "sent_bytes": self.prediction.traffic.between_ranks,
            "offloaded_bytes": self.prediction.traffic.with_host,
            "sending_seconds": self.sending_s,
            "sending_share": self.sending_share,
        }

    def choice(self, gpu: Gpu) -> GpuChoice:
        """The target's GPU as one among several."""
        device, verdict = self.memory.device, self.fits
        return GpuChoice(
            gpu=gpu.name,
            capacity_bytes=gpu.memory_bytes,
            fits=None if verdict is None else VERDICTS[verdict],
            device_bytes=device.mid,
            device_bytes_low=device.low,
            device_bytes_high=device.high,
            max_micro_batch=self.prediction.max_micro_batch,
            tokens_per_second=self.speed,
            hours=self.hours,
        )

    def notes(self, *, has_choice: bool) -> Iterator[str]:
        """What the figures do not say themselves."""
        gpu, capacity = self.target.gpu, self.target.capacity_bytes
        settings = self.question.settings
        if self.question.which_gpu and not has_choice:
            yield "On no GPU of the catalogue is it sure to fit; the figures are those of the largest."
        if not self.memory.calibrated:
            yield (
                "Too few measurements stand behind the intervals so far: they are wide by intention, "
                "and not calibrated."
            )
        if gpu is not None and self.against.learnt.trials:
            yield f"Speed and intervals reckon with {self.against.learnt.trials} trials on {gpu.name}."
        if gpu is not None and self.question.limit_bytes is not None:
            yield f"Judged by {format_bytes(capacity or 0)}, the lesser of the limit and the GPU's memory."
        if gpu is not None and (reason := _no_use(gpu, settings)):
            yield f"{gpu.name} {reason}."
        if self.target.gpus > 1:
            yield (
                "Sizes and speed are those of one GPU. Speeds range from all sending hidden behind computing "
                "to none of it; waiting for a slower GPU is left out."
            )
        if self.target.gpus > GPUS_A_NODE:
            yield f"More than {GPUS_A_NODE} GPUs are taken for several machines, whose network nobody told."
        if host_bytes := self.prediction.host_bytes:
            yield f"Offloading takes {format_bytes(host_bytes)} of the host's memory for each GPU."
            yield "How fast it is depends on the host and its link to the GPU: no speed is told."
        if self.image_shape is not None:
            channels, height, width = self.image_shape
            yield (
                f"It reads images of {height} × {width} pixels in {channels} channels, as its configuration "
                "says: there is no length of rows to ask for, and no speed in tokens."
            )
            yield "What cuDNN's convolutions take to work with is not counted."


def answer_alone(home: Home, question: Question, *, allow_remote_code: bool) -> EstimateDocument:
    """As :func:`answer`, by a job of its own and what the store of this home knows."""

    def ask(terms: Sequence[Terms], enough: int | None) -> Estimation:
        return estimate_once(
            home,
            question.model,
            question.settings,
            terms,
            task=question.task,
            enough=enough,
            allow_remote_code=allow_remote_code,
        )

    with _trials_of(home) as trials_on:
        return answer(question, ask, trials_on)


def _asked(question: Question) -> dict[str, Any]:
    """The question in the words that it is asked in, defaults filled in."""
    settings = {
        _OPTION_OF.get(field.name, field.name): getattr(question.settings, field.name)
        for field in dataclasses.fields(Settings)
    }
    return {
        **settings,
        "memory_limit": question.limit_bytes,
        "which_gpu": question.which_gpu,
        "every_gpu": question.every_gpu,
        "largest": question.largest,
        "tokens": question.tokens,
    }


def _usable_gpus(settings: Settings) -> tuple[list[Gpu], tuple[str, ...]]:
    """GPUs that can compute as the settings say, the smallest first, and a note on those that cannot."""
    reasons = {gpu: _no_use(gpu, settings) for gpu in smallest_first()}
    notes = []
    for reason in dict.fromkeys(reason for reason in reasons.values() if reason):
        names = ", ".join(gpu.name for gpu, own in reasons.items() if own == reason)
        notes.append(f"Not looked at: {names}. Such a GPU {reason}.")
    return [gpu for gpu, reason in reasons.items() if reason is None], tuple(notes)


def _no_use(gpu: Gpu, settings: Settings) -> str | None:
    """Why a GPU is not one to compute on as the settings say; None where it is."""
    if settings.precision.endswith("bf16") and gpu.bf16_flops is None:
        return "has no unit for bfloat16, which torch emulates slowly: take fp16 or amp-fp16"
    capability = gpu.compute_capability
    if (
        settings.attention == "flash_attention_2"
        and capability is not None
        and capability < _FLASH_CAPABILITY
    ):
        return "is too old for FlashAttention-2: take the attention sdpa"
    return None
