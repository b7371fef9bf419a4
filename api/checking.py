"""A trainer's file looked at: what is wrong with it, whether it fits, and what would do better.

For command line and HTTP alike. Knows nothing of terminals, nor of how a dry run works.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, ModelError, PathNotAllowed
from ..home import Home
from ..optimizer.estimates.gpus import find_gpu
from ..optimizer.trainers.file_facts import Facts, Finding, Severity
from ..optimizer.trainers.findings import findings, in_order
from ..optimizer.trainers.reading import TRAINING_FORMATS, Reading
from ..probes.host import read_hardware
from ..probes.model_source import is_hub_id
from ..probes.paths import resolve_path
from ..probes.profiles import GpuProfile
from ..runners.jobs import Inquiries
from .estimates import EstimateOptions, TrialsOn, answer, no_trials, read_question
from .response_schemas.checks import CheckDocument, CheckFinding
from .response_schemas.estimates import EstimateDocument
from .submission import InvalidRequest
from .trainer_files import TrainerFile
from .trainer_options import better_split, estimate_options, leaner, model_of
from .units import format_bytes

WORTH_SAYING = 1.03
"""Times as fast, from which on another setting is worth a word."""

MOST_MISSING = 8
"""Targets that the model has not, until looking on is given up."""

_CONFIG_BYTES = 2**20

_KEY_OF_FIELD = {
    "gpu": None,
    "memory_limit": None,
    "batch_size": "micro_batch",
    "gradient_accumulation": "accumulation",
    "seq_len": "max_length",
    "length": "max_length",
}
"""Fields of an estimate → settings, where they are called otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a training is to run."""

    gpu: str | None = None
    """None: the first that is found here."""
    gpus: int | None = None
    memory_limit: str | int | None = None
    is_quick: bool = False
    """The file alone is looked at."""
    is_here: bool = True
    """This machine's GPU and packages count where none is named."""
    roots: Sequence[Path] | None = None
    """Folders that local models must lie in; None sets no restriction."""
    allow_remote_code: bool = False


@dataclass(slots=True)
class _Checked:
    """What has been found so far."""

    file: TrainerFile
    found: list[Finding] = field(default_factory=list)
    estimate: EstimateDocument | None = None
    unknown: str | None = None
    """Why nothing is known of its memory."""


Estimator = Callable[[str, EstimateOptions], EstimateDocument]
"""(model, options) → the answer."""


def check_alone(home: Home, file: TrainerFile, where: Where) -> CheckDocument:
    """As :func:`check`, by a warm server of its own where one is needed."""
    with Inquiries(home, ["estimate"]) as inquiries:
        return check(file, where, estimator(inquiries, where), disk=home.root)


def estimator(inquiries: Inquiries, where: Where, trials_on: TrialsOn = no_trials) -> Estimator:
    """Answers estimates by these inquiries."""

    def estimate(model: str, options: EstimateOptions) -> EstimateDocument:
        question = read_question(
            model, roots=where.roots, allow_remote_code=where.allow_remote_code, **options
        )
        ask = partial(
            inquiries.estimate,
            question.model,
            question.settings,
            task=question.task,
            allowed_roots=where.roots,
            allow_remote_code=where.allow_remote_code,
        )
        return answer(question, lambda terms, enough: ask(terms, enough=enough), trials_on)

    return estimate


def check(file: TrainerFile, where: Where, estimate: Estimator, *, disk: Path) -> CheckDocument:
    """All that is found, with the verdict.

    Args:
        file: as it was read.
        where: it is to run.
        estimate: answers questions about memory; not called where the file alone is looked at.
        disk: a path on the file system that runs would write to.

    Raises:
        InputError: the GPU or the limit that is named makes no sense.
        RunnerError: an estimate could not be run.
    """
    reading = file.reading
    model = model_of(file, where.roots)
    config = {} if model is None else _config_of(model, where)
    is_named = where.gpu is not None or where.memory_limit is not None
    hardware = read_hardware(disk) if where.is_here and not is_named and not where.is_quick else None
    gpus = hardware.gpus if hardware else ()
    state = _Checked(file)
    facts = Facts(
        reading=reading,
        deepspeed=file.deepspeed,
        adapter=file.adapter,
        gpus=where.gpus,
        libraries=None if hardware is None else frozenset(hardware.host.libraries),
        hidden_size=_width(config),
        architecture=next(iter(config.get("architectures") or ()), None),
    )
    state.found += findings(facts)
    state.found += [
        Finding(id="not-read", severity=Severity.WARNING, message=problem) for problem in file.problems
    ]
    state.unknown = _no_estimate(state, where, model)
    if state.unknown is None and model is not None:
        placed: EstimateOptions = {"gpus": where.gpus or 1}
        if where.memory_limit is not None:
            placed["memory_limit"] = where.memory_limit
        if where.gpu is not None:
            placed["gpu"] = where.gpu
        elif gpus:
            placed |= _found_here(gpus[0])
        _estimate(state, model, placed, estimate)
    return _document(state, where)


def _found_here(gpu: GpuProfile) -> EstimateOptions:
    """The GPU of this machine, by its memory alone where the catalogue has none of its name."""
    try:
        return {"gpu": find_gpu(gpu.name).name}
    except InputError:
        return {"memory_limit": gpu.total_bytes}


def _no_estimate(state: _Checked, where: Where, model: str | None) -> str | None:
    """Why no memory is told; None where it can be."""
    reading = state.file.reading
    if where.is_quick:
        return "only the file was looked at"
    if reading.trainer not in TRAINING_FORMATS:
        return f"a file of {reading.trainer} says too little of the training"
    if model is None:
        return "the file names no model"
    if reading.bad:
        return "some values of the file cannot be understood"
    if reading.method is None:
        return f"rankwise does not know the method {reading.get('method')!r:.40}"
    return None


def _estimate(state: _Checked, model: str, placed: EstimateOptions, estimate: Estimator) -> None:
    """Memory and speed as the file has it, and what does better."""
    try:
        options: EstimateOptions = {**estimate_options(state.file.reading), **placed}
        state.estimate, options = _with_known_targets(state, model, options, estimate)
    except InputError as error:
        problems = error.problems if isinstance(error, InvalidRequest) else ()
        causes = [problem.error for problem in problems] or [error]
        for cause in causes:
            if isinstance(cause, PathNotAllowed):
                raise cause from None
        if any(problem.field in ("gpu", "memory_limit", "gpus") for problem in problems):
            raise
        state.unknown = error.message
        field_name = problems[0].field if problems else _field_in(error.message)
        state.found.append(
            Finding(
                id="cannot-run",
                severity=Severity.WARNING if all(map(_is_model_missing, causes)) else Severity.ERROR,
                message=error.message,
                next_step=error.next_step,
                key=_key_of(state.file.reading, field_name),
            )
        )
        return
    if state.estimate is not None:
        state.found += _about_memory(state.file.reading, state.estimate, model, options, estimate)


def _with_known_targets(
    state: _Checked, model: str, options: EstimateOptions, estimate: Estimator
) -> tuple[EstimateDocument | None, EstimateOptions]:
    """The estimate without the targets that the model has not: PEFT passes over them while others match."""
    missing: list[str] = []
    while True:
        names = options.get("targets", "").split(",")
        try:
            found = estimate(model, options)
        except InputError as error:
            lost = [name for name in names if f"no module {name!r}" in error.message]
            if not lost or len(missing) == MOST_MISSING or len(names) == 1:
                raise
            missing += lost
            options = {**options, "targets": ",".join(name for name in names if name not in lost)}
            continue
        if missing:
            state.found.append(
                Finding(
                    id="target-matches-nothing",
                    severity=Severity.WARNING,
                    message=f"the model has no module {', '.join(missing)}: PEFT passes over such a target",
                    next_step="see rankwise inspect MODEL for the names it has",
                    key=_key_of(state.file.reading, "targets"),
                )
            )
        return found, options


def _about_memory(
    reading: Reading,
    document: EstimateDocument,
    model: str,
    options: EstimateOptions,
    estimate: Estimator,
) -> Iterator[Finding]:
    if document.fits == "yes":
        yield from _faster(reading, document, model, options, estimate)
    elif document.fits is not None:
        fitting = _smaller(reading, document, model, options, estimate)
        is_sure = document.fits == "no"
        yield Finding(
            id="does-not-fit" if is_sure else "too-close",
            severity=Severity.ERROR if is_sure else Severity.WARNING,
            message=f"{'does not fit' if is_sure else 'too close to call'}: {_needs(document)}",
            next_step=fitting or "take fewer tokens a row, a smaller model or a larger GPU",
            key=_key_of(reading, "micro_batch"),
        )


def _faster(
    reading: Reading,
    document: EstimateDocument,
    model: str,
    options: EstimateOptions,
    estimate: Estimator,
) -> Iterator[Finding]:
    """What would be faster and fits for sure."""
    if document.candidate.level.gradient_checkpointing:
        other = _tried(estimate, model, {**options, "gradient_checkpointing": False})
        if other is not None and other.fits == "yes":
            yield Finding(
                id="checkpointing-not-needed",
                severity=Severity.HINT,
                message=f"gradient checkpointing is not needed: {_needs(other)} without it"
                f"{_gain(document, other)}",
                next_step="switch it off",
                key=_key_of(reading, "gradient_checkpointing"),
            )
    micro, accumulation = document.candidate.micro_batch, options.get("gradient_accumulation", 1)
    split = better_split(micro, accumulation, document.max_micro_batch or micro)
    if accumulation > 1 and split is not None and split[0] > micro:
        other = _tried(
            estimate, model, {**options, "batch_size": split[0], "gradient_accumulation": split[1]}
        )
        gain = None if other is None else _times_as_fast(document, other)
        if other is not None and other.fits == "yes" and gain is not None and gain >= WORTH_SAYING:
            yield Finding(
                id="larger-micro-batch",
                severity=Severity.HINT,
                message=f"micro-batch {split[0]} × accumulation {split[1]} in place of {micro} × "
                f"{accumulation}: {_needs(other)}{_gain(document, other)}",
                next_step="the same rows make a step, so nothing else changes",
                key=_key_of(reading, "micro_batch"),
            )


def _smaller(
    reading: Reading,
    document: EstimateDocument,
    model: str,
    options: EstimateOptions,
    estimate: Estimator,
) -> str | None:
    """The mildest change with which it fits for sure, in words."""
    micro, accumulation = document.candidate.micro_batch, options.get("gradient_accumulation", 1)
    most = document.max_micro_batch
    if most and most < micro:
        split = better_split(micro, accumulation, most)
        if split is not None:
            return f"micro-batch {split[0]} × accumulation {split[1]} fits, with the same rows in a step"
    for words, changed in leaner(reading, options):
        other = _tried(estimate, model, changed)
        if other is not None and other.fits == "yes":
            return f"with {words} it fits: {_needs(other)}"
        if other is not None and other.max_micro_batch:
            split = better_split(micro, accumulation, other.max_micro_batch)
            if split is not None and split[0] < micro:
                return f"with {words} and micro-batch {split[0]} × accumulation {split[1]} it fits"
    return None


def _tried(estimate: Estimator, model: str, options: EstimateOptions) -> EstimateDocument | None:
    """None where the model or the GPU does not take it."""
    try:
        return estimate(model, options)
    except InputError:
        return None


def _needs(document: EstimateDocument) -> str:
    of = "" if document.capacity_bytes is None else f" of {format_bytes(document.capacity_bytes)}"
    on = "" if document.gpu is None else f" on {document.gpu}"
    return f"{format_bytes(document.device_bytes)}{of}{on}"


def _times_as_fast(before: EstimateDocument, after: EstimateDocument) -> float | None:
    if before.tokens_per_second is None or after.tokens_per_second is None:
        return None
    return after.tokens_per_second.mid / before.tokens_per_second.mid


def _gain(before: EstimateDocument, after: EstimateDocument) -> str:
    times = _times_as_fast(before, after)
    return "" if times is None or times < WORTH_SAYING else f", about {times - 1:.0%} faster"


def _is_model_missing(error: InputError) -> bool:
    """The model is not at hand: nothing is wrong with the file."""
    return isinstance(error, ModelError)


def _field_in(message: str) -> str:
    """The setting that a refusal without a field is about."""
    words = {"module": "targets", "tokens": "max_length", "attention": "attention"}
    return next((name for word, name in words.items() if word in message), "model")


def _key_of(reading: Reading, name: str | None) -> str | None:
    setting = _KEY_OF_FIELD.get(name, name) if name is not None else None
    return None if setting is None else reading.key_of.get(setting)


def _config_of(model: str, where: Where) -> Mapping[str, Any]:
    """The model's configuration, if it is at hand; rules ask it for little."""
    if is_hub_id(model):
        return {}
    try:
        path = resolve_path(model, where.roots)
        path = path if path.name == "config.json" else path / "config.json"
        if path.stat().st_size > _CONFIG_BYTES:
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, InputError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _width(config: Mapping[str, Any]) -> int | None:
    told = config.get("hidden_size") or config.get("d_model")
    return told if isinstance(told, int) and told > 0 else None


def _document(state: _Checked, where: Where) -> CheckDocument:
    reading, file = state.file.reading, state.file
    ordered = in_order(state.found)
    counts = {severity.value: sum(each.severity is severity for each in ordered) for severity in Severity}
    verdict: Literal["yes", "no", "too-close", "unknown"] = "unknown"
    if state.estimate is not None and state.estimate.fits is not None:
        verdict = state.estimate.fits
    elif state.estimate is not None:
        state.unknown = "no GPU was named or found, and no limit was given"
    return CheckDocument(
        file=file.name,
        format=reading.trainer,
        quick=where.is_quick,
        fits=verdict,
        why_unknown=state.unknown if verdict == "unknown" else None,
        findings=tuple(
            CheckFinding(
                id=each.id,
                severity=each.severity.value,
                message=each.message,
                next_step=each.next_step,
                key=each.key,
                line=file.line_of(each.key),
                versions=each.versions,
            )
            for each in ordered
        ),
        counts=counts,
        settings={name: value for name, value in reading.settings.items() if value is not None},
        defaults=tuple(sorted(set(reading.settings) - reading.said)),
        not_looked_at=reading.ignored,
        estimate=state.estimate,
    )
