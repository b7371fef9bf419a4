"""Which trials can be compared, by which figures, and how each figure becomes a part between 0 and 1.

Knows nothing of adapters and of who compares: search and scorer share these rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from .domain import Candidate, Measurement, Outcome, Rung, Trial, Weights

OUT_OF_MEMORY = (Outcome.OOM, Outcome.HOST_OOM)

FAILURES = (*OUT_OF_MEMORY, Outcome.DIVERGED, Outcome.INVALID, Outcome.TIMEOUT, Outcome.CRASHED)
"""Outcomes that speak against a configuration, and not against the infrastructure."""

WHY_FAILED: Mapping[Outcome, str] = {
    Outcome.OOM: "ran out of memory",
    Outcome.HOST_OOM: "ran out of host memory",
    Outcome.DIVERGED: "diverged",
    Outcome.INVALID: "did not train as configured",
    Outcome.TIMEOUT: "took too long",
    Outcome.CRASHED: "crashed",
    Outcome.LOST: "lost its process",
    Outcome.CANCELLED: "was cancelled",
}
"""For people: what became of a trial that did not succeed."""

MEMORY_COLUMNS = ("peak_device_bytes", "peak_reserved_bytes", "peak_process_bytes", "peak_tensor_bytes")
"""Preferred first. They mean different things, so a comparison takes one that all its trials have."""

PROBED_COLUMNS = (
    "tokens_per_s",
    "tokens_per_s_rel_halfwidth",
    "samples_per_s",
    "steps_per_s",
    "step_s_mean",
    "step_s_std",
    "peak_allocated_bytes",
    *MEMORY_COLUMNS,
    "disturbances",
)
"""What a training takes over from the probe of its shape: there it was measured under steady conditions."""

QUALITY_SHARPNESS = 10.0
"""One percent more loss takes this many percent off the part of quality, a little less further down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A candidate that succeeded, with all that was measured of it."""

    trial: Trial
    """The first of its trials."""
    measurement: Measurement
    """Of trainings: means over seeds, with the speed of the shape's probe, and the larger memory of both."""
    probe: Trial | None
    """Where speed and memory come from, if not from the trial itself."""
    replicates: tuple[Trial, ...] = ()
    """All its trainings of that length, the first included, in the order of seeds."""


def exceeds(measurement: Measurement | None, memory_limit_bytes: int | None) -> bool:
    """The measured peak lies above the limit; False where either is unknown."""
    if measurement is None or measurement.memory_bytes is None or memory_limit_bytes is None:
        return False
    return measurement.memory_bytes > memory_limit_bytes


def finish_s(measurement: Measurement, full_steps: int) -> float | None:
    """That the whole training takes at this speed; None where it is unknown."""
    return None if measurement.step_s_mean is None else full_steps * measurement.step_s_mean


def exceeds_finish(measurement: Measurement, full_steps: int, limit_s: float | None) -> bool:
    """The whole training would take longer than the limit; False where either is unknown."""
    seconds = finish_s(measurement, full_steps)
    return seconds is not None and limit_s is not None and seconds > limit_s


def comparable_trials(trials: Sequence[Trial], memory_limit_bytes: int | None) -> list[Compared]:
    """The candidates that trained longest, all equally long, or, if none trained, those that were probed.

    Never both: a probe's loss says nothing about quality. A shape that did not fit at either rung is out, or
    whose probe failed; so is a candidate one of whose trainings failed.
    """
    failed_shapes: set[str] = set()
    failed: set[Candidate] = set()
    for trial in trials:
        if exceeds(trial.measurement, memory_limit_bytes) or trial.outcome in OUT_OF_MEMORY:
            failed_shapes.add(trial.candidate.shape_key)
        elif trial.outcome in FAILURES:
            if trial.plan.rung is Rung.PROBE:
                failed_shapes.add(trial.candidate.shape_key)
            else:
                failed.add(trial.candidate)
    successes = [
        trial
        for trial in trials
        if trial.outcome is Outcome.OK
        and trial.measurement
        and trial.candidate not in failed
        and trial.candidate.shape_key not in failed_shapes
    ]
    probes = {trial.candidate.shape_key: trial for trial in successes if trial.plan.rung is Rung.PROBE}
    trainings = [trial for trial in successes if trial.plan.rung is Rung.TRAIN]
    longest = max((trial.plan.train_steps for trial in trainings), default=0)
    seeds: dict[Candidate, list[Trial]] = {}
    for trial in sorted(trainings, key=lambda each: (each.plan.replicate, each.number)):
        if trial.plan.train_steps == longest:
            seeds.setdefault(trial.candidate, []).append(trial)
    trained = [_of_seeds(own, probes.get(candidate.shape_key)) for candidate, own in seeds.items()]
    return trained or [_with_probe(trial, None) for trial in probes.values()]


def relative_excess(losses: Sequence[float]) -> list[float]:
    """How much more than the lowest each loss is, as a share of that (of the range where it is zero)."""
    lowest = min(losses)
    scale = abs(lowest) or max(losses) - lowest or 1.0
    return [(loss - lowest) / scale for loss in losses]


def memory_column(measurements: Sequence[Measurement]) -> str | None:
    """The memory column to compare these by: the first of MEMORY_COLUMNS that all of them have."""
    return next((name for name in MEMORY_COLUMNS if all(getattr(m, name) for m in measurements)), None)


def comparable_parts(
    measurements: Sequence[Measurement], *, losses: Sequence[float | None] | None = None
) -> list[dict[str, float]]:
    """Each measurement against the best of them, between 0 and 1, by the figures that all have.

    ``speed`` is the share of the highest tokens/s (of arrays samples/s); ``memory`` the smallest peak as a
    share of the own; ``quality`` exp(-10 · how much more held-out loss than the lowest, as a share of it).

    Args:
        measurements: what is compared.
        losses: in place of the measurements' own.
    """
    parts: list[dict[str, float]] = [{} for _ in measurements]
    speeds = [m.speed for m in measurements if m.speed]
    if len(speeds) == len(measurements):
        fastest = max(speeds, default=0.0)
        for part, speed in zip(parts, speeds, strict=True):
            part["speed"] = speed / fastest
    if column := memory_column(measurements):
        peaks = [getattr(measurement, column) for measurement in measurements]
        smallest = min(peaks, default=0)
        for part, peak in zip(parts, peaks, strict=True):
            part["memory"] = smallest / peak
    found = [m.judged_loss for m in measurements] if losses is None else losses
    known = [loss for loss in found if loss is not None]
    if known and len(known) == len(measurements):
        for part, excess in zip(parts, relative_excess(known), strict=True):
            part["quality"] = math.exp(-QUALITY_SHARPNESS * excess)
    return parts


def weighted_score(parts: Mapping[str, float], weights: Weights) -> float:
    """100·Σ(w·part)/Σw over the parts that there are; a plain mean where none of those has weight."""
    weight_of = {name: getattr(weights, name) for name in parts}
    if sum(weight_of.values()) == 0:
        weight_of = dict.fromkeys(parts, 1.0)
    total = sum(weight_of.values())
    return 100 * sum(weight_of[name] * part for name, part in parts.items()) / total if total else 0.0


def _of_seeds(seeds: Sequence[Trial], probe: Trial | None) -> Compared:
    """One candidate out of its trainings: losses and metrics are means over them."""
    compared = _with_probe(seeds[0], probe)
    own = [trial.measurement for trial in seeds if trial.measurement is not None]
    means: dict[str, Any] = {
        name: _mean([getattr(measurement, name) for measurement in own])
        for name in ("heldout_loss", "metric_value", "own_metric", "own_loss")
    }
    metrics = {
        name: value
        for name in own[0].metrics
        if (value := _mean([measurement.metrics.get(name) for measurement in own])) is not None
    }
    return replace(
        compared,
        measurement=replace(compared.measurement, metrics=metrics, **means),
        replicates=tuple(seeds),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _with_probe(trial: Trial, probe: Trial | None) -> Compared:
    measurement = trial.measurement or Measurement()
    if probe is not None:
        figures = {name: getattr(probe.measurement, name) for name in PROBED_COLUMNS}
        for column in MEMORY_COLUMNS:  # whichever took more is what has to fit
            own, theirs = getattr(measurement, column), figures[column]
            figures[column] = own if theirs is None or (own is not None and own > theirs) else theirs
        measurement = replace(measurement, **{name: it for name, it in figures.items() if it is not None})
    return Compared(trial=trial, measurement=measurement, probe=probe)
