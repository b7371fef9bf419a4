"""Two studies of the same model and data beside each other: what an environment changed of speed and memory.

Shapes are matched, not trials: a shape has the same memory and speed wherever a candidate has it. Pure; knows
nothing of stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..errors import InputError
from ..probes.profiles import HardwareProfile
from .codec import to_json
from .comparison import MEMORY_COLUMNS
from .domain import Candidate, Measurement, Outcome, Recommendation, Rung, Study, StudyFacts, Trial
from .keys import environment_key, trial_device

LEAST_MEMORY_SHARE = 0.01
"""Peaks that were read once each and differ by less are not told apart: allocators round."""


class Change(StrEnum):
    """What became of a figure from the first study to the second."""

    MORE = "more"
    LESS = "less"
    NO_DIFFERENCE = "no difference"
    """None beyond the uncertainty of both."""
    UNKNOWN = "unknown"
    """A figure, or its uncertainty, was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentChange:
    """One thing that differs between two machines."""

    name: str
    """``driver``, ``torch``, ``OMP_NUM_THREADS``, …"""
    then: str | None
    now: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one study measured of a shape."""

    number: int
    """Of the trial."""
    speed: float | None
    speed_rel_halfwidth: float | None
    """Half the 95 % interval of ``speed``, as a share of it."""
    memory_low_bytes: int | None
    """Least of the peaks of all the study's trials of this shape …"""
    memory_high_bytes: int | None
    """… and most."""
    is_reused: bool
    """Taken over from an earlier study in the same environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeChange:
    """One shape that both studies measured."""

    shape_key: str
    description: str
    """A candidate of this shape, of the second study."""
    speed_unit: str
    memory_column: str | None
    """Which of a measurement's peaks is compared; None where they have none in common."""
    then: Figures
    now: Figures
    speed_ratio: float | None
    """Now to then."""
    speed: Change
    memory_ratio: float | None
    """The most now to the most then."""
    memory: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The second study beside the first."""

    then_id: str
    now_id: str
    same_environment: bool
    environment: tuple[EnvironmentChange, ...]
    shapes: tuple[ShapeChange, ...]
    only_then: int
    """Shapes that only the first measured …"""
    only_now: int
    """… and only the second."""
    recommended_then: str | None
    """None where nothing was recommended."""
    recommended_now: str | None
    recommendation_changed: bool | None
    """None where either recommends nothing."""
    notes: tuple[str, ...]
    """What else makes figures differ, in sentences."""


def difference(
    then: Study,
    then_trials: Sequence[Trial],
    then_best: Recommendation | None,
    now: Study,
    now_trials: Sequence[Trial],
    now_best: Recommendation | None,
) -> Difference:
    """What changed from the first study to the second.

    Raises:
        InputError: they are not of the same model and rows, or share no shape that was measured.
    """
    then_facts, now_facts = comparable_facts(then, now)
    old, new = _by_shape(then_trials), _by_shape(now_trials)
    shared = [shape for shape in new if shape in old]
    if not shared:
        raise InputError(
            f"studies {then.id} and {now.id} share no measured shape (of {len(old)} and {len(new)})",
            next_step="run the newer one with the older one's --method, --quantization and limits",
        )
    return Difference(
        then_id=then.id,
        now_id=now.id,
        same_environment=environment_key(then_facts.hardware) == environment_key(now_facts.hardware),
        environment=tuple(_environment(then_facts.hardware, now_facts.hardware)),
        shapes=tuple(_shape(shape, old[shape], new[shape]) for shape in shared),
        only_then=len(old) - len(shared),
        only_now=len(new) - len(shared),
        recommended_then=then_best.candidate.describe() if then_best else None,
        recommended_now=now_best.candidate.describe() if now_best else None,
        recommendation_changed=None
        if then_best is None or now_best is None
        else then_best.candidate.id != now_best.candidate.id,
        notes=tuple(_notes(then, now)),
    )


def comparable_facts(then: Study, now: Study) -> tuple[StudyFacts, StudyFacts]:
    """The facts of both.

    Raises:
        InputError: there is nothing to compare, and why.
    """
    if then.id == now.id:
        raise InputError(f"study {now.id} is compared with itself", next_step="name two studies")
    for study in (then, now):
        if study.facts is None:
            raise InputError(
                f"study {study.id} is {study.state}, and nothing was measured",
                next_step=f"run it first: rankwise recommend --resume {study.id}",
            )
    assert then.facts is not None and now.facts is not None  # noqa: S101, PT018 - checked above
    if then.facts.model.structure_sha256 != now.facts.model.structure_sha256:
        raise InputError(
            f"study {then.id} is about {then.facts.model.source} and study {now.id} about "
            f"{now.facts.model.source}, whose structures differ",
            next_step="compare studies of the same model",
        )
    if _rows_of(then.facts) != _rows_of(now.facts):
        raise InputError(
            f"study {then.id} is on {then.facts.dataset.source} and study {now.id} on "
            f"{now.facts.dataset.source}, whose rows differ",
            next_step="compare studies on the same data",
        )
    return then.facts, now.facts


def are_comparable(then: Study, now: Study) -> bool:
    """Same model, same rows, another environment: the earlier tells what the environment changed."""
    try:
        then_facts, now_facts = comparable_facts(then, now)
    except InputError:
        return False
    return environment_key(then_facts.hardware) != environment_key(now_facts.hardware)


def _rows_of(facts: StudyFacts) -> object:
    """What of the rows moves speed and memory: their task, and their lengths or else their content."""
    lengths = facts.dataset.lengths
    return facts.dataset.task.kind, to_json(lengths) if lengths else facts.dataset.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """A shape's probe, or its first training, and all measurements of it."""

    trial: Trial
    measurement: Measurement
    all: Sequence[Measurement]


def _by_shape(trials: Sequence[Trial]) -> Mapping[str, _Measured]:
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.outcome is Outcome.OK and trial.measurement is not None:
            found.setdefault(trial.candidate.shape_key, []).append(trial)
    shapes: dict[str, _Measured] = {}
    for shape, own in found.items():
        first = min(own, key=lambda trial: (trial.plan.rung is not Rung.PROBE, trial.number))
        measurements = [trial.measurement for trial in own if trial.measurement is not None]
        shapes[shape] = _Measured(
            trial=first, measurement=first.measurement or measurements[0], all=measurements
        )
    return shapes


def _shape(shape: str, then: _Measured, now: _Measured) -> ShapeChange:
    column = next(
        (
            name
            for name in MEMORY_COLUMNS
            if getattr(then.measurement, name) is not None and getattr(now.measurement, name) is not None
        ),
        None,
    )
    old, new = _figures(then, column), _figures(now, column)
    speed_ratio = new.speed / old.speed if new.speed and old.speed else None
    memory_ratio = None
    if old.memory_high_bytes and new.memory_high_bytes:
        memory_ratio = new.memory_high_bytes / old.memory_high_bytes
    candidate: Candidate = now.trial.candidate
    return ShapeChange(
        shape_key=shape,
        description=candidate.describe(),
        speed_unit=now.measurement.speed_unit,
        memory_column=column,
        then=old,
        now=new,
        speed_ratio=speed_ratio,
        speed=_speed_change(speed_ratio, old, new),
        memory_ratio=memory_ratio,
        memory=_memory_change(memory_ratio, old, new),
    )


def _figures(measured: _Measured, column: str | None) -> Figures:
    peaks = [size for one in measured.all if column and (size := getattr(one, column)) is not None]
    return Figures(
        number=measured.trial.number,
        speed=measured.measurement.speed,
        speed_rel_halfwidth=measured.measurement.tokens_per_s_rel_halfwidth,
        memory_low_bytes=min(peaks, default=None),
        memory_high_bytes=max(peaks, default=None),
        is_reused=measured.trial.reused_from is not None,
    )


def _speed_change(ratio: float | None, then: Figures, now: Figures) -> Change:
    """By the interval of the quotient of two independent speeds."""
    if ratio is None or then.speed_rel_halfwidth is None or now.speed_rel_halfwidth is None:
        return Change.UNKNOWN
    if abs(math.log(ratio)) <= math.hypot(then.speed_rel_halfwidth, now.speed_rel_halfwidth):
        return Change.NO_DIFFERENCE
    return Change.MORE if ratio > 1 else Change.LESS


def _memory_change(ratio: float | None, then: Figures, now: Figures) -> Change:
    """By whether the ranges overlap, and by a share that no reading resolves."""
    ends = (then.memory_low_bytes, then.memory_high_bytes, now.memory_low_bytes, now.memory_high_bytes)
    then_low, then_high, now_low, now_high = ends
    if ratio is None or then_low is None or then_high is None or now_low is None or now_high is None:
        return Change.UNKNOWN
    if abs(ratio - 1) < LEAST_MEMORY_SHARE or (now_low <= then_high and then_low <= now_high):
        return Change.NO_DIFFERENCE
    return Change.MORE if ratio > 1 else Change.LESS


def _environment(then: HardwareProfile, now: HardwareProfile) -> Iterator[EnvironmentChange]:
    old, new = _described(then), _described(now)
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield EnvironmentChange(name=name, then=old.get(name), now=new.get(name))


def _described(hardware: HardwareProfile) -> dict[str, str]:
    """Everything that the environment's key is made of, by the names that people know it by."""
    gpu, host = trial_device(hardware), hardware.host
    parts: dict[str, object] = {
        "device": gpu.name if gpu else "CPU",
        "device memory, bytes": gpu and gpu.total_bytes,
        "MIG": gpu and gpu.is_mig,
        "driver": gpu and gpu.driver_version,
        "power limit, W": gpu and gpu.power_limit_w,
        "largest clock, Hz": gpu and gpu.max_sm_clock_hz,
        "processor": host.cpu_model,
        "physical cores": host.physical_cores,
        "logical cores": host.logical_cores,
        "system": host.platform,
        "Python": host.python_version,
        **dict(sorted(host.libraries.items())),
        **dict(sorted(host.variables.items())),
    }
    return {name: str(value) for name, value in parts.items() if value is not None}


def _notes(then: Study, now: Study) -> Iterator[str]:
    if then.request.seed != now.request.seed:
        yield (
            f"The seeds differ ({then.request.seed} and {now.request.seed}): other rows were timed, and "
            "other rows are the longest."
        )
    if then.request.memory_limit_bytes != now.request.memory_limit_bytes:
        yield "The memory limits differ: close to its limit an allocator is slower and keeps less in reserve."
    if then.request.effective_weights != now.request.effective_weights:
        yield "The objectives differ, so what is recommended may differ for that alone."
