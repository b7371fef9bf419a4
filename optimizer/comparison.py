"""Which trials can be compared, by which figures, and how each figure becomes a part between 0 and 1.

Knows nothing of adapters and of who compares: search and scorer share these rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .domain import Measurement, Outcome, Rung, Trial, Weights

OUT_OF_MEMORY = (Outcome.OOM, Outcome.HOST_OOM)

FAILURES = (*OUT_OF_MEMORY, Outcome.DIVERGED, Outcome.INVALID, Outcome.TIMEOUT, Outcome.CRASHED)
"""Outcomes that speak against a configuration, and not against the infrastructure."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A successful trial with all that was measured of it."""

    trial: Trial
    measurement: Measurement
    """A training's own, with the speed of its shape's probe, and the larger memory of both."""
    probe: Trial | None
    """Where speed and memory come from, if not from the trial itself."""


def exceeds(measurement: Measurement | None, memory_limit_bytes: int | None) -> bool:
    """The measured peak lies above the limit; False where either is unknown."""
    if measurement is None or measurement.memory_bytes is None or memory_limit_bytes is None:
        return False
    return measurement.memory_bytes > memory_limit_bytes


def comparable_trials(trials: Sequence[Trial], memory_limit_bytes: int | None) -> list[Compared]:
    """The successful trainings within the memory limit or, if there are none, the probes.

    Never both: a probe's loss says nothing about quality. A shape that failed at either rung is out.
    """
    failed = {
        trial.candidate.shape_key
        for trial in trials
        if trial.outcome in FAILURES or exceeds(trial.measurement, memory_limit_bytes)
    }
    successes = [
        trial
        for trial in trials
        if trial.outcome is Outcome.OK and trial.measurement and trial.candidate.shape_key not in failed
    ]
    probes = {trial.candidate.shape_key: trial for trial in successes if trial.plan.rung is Rung.PROBE}
    trainings = [
        _with_probe(trial, probes.get(trial.candidate.shape_key))
        for trial in successes
        if trial.plan.rung is Rung.TRAIN
    ]
    return trainings or [_with_probe(trial, None) for trial in probes.values()]


def memory_column(measurements: Sequence[Measurement]) -> str | None:
    """The memory column to compare these by: the first of MEMORY_COLUMNS that all of them have."""
    return next((name for name in MEMORY_COLUMNS if all(getattr(m, name) for m in measurements)), None)


def comparable_parts(measurements: Sequence[Measurement]) -> list[dict[str, float]]:
    """Each measurement against the best of them, between 0 and 1, by the figures that all have.

    ``speed`` is the share of the highest tokens/s (of arrays samples/s); ``memory`` the smallest peak as a
    share of the own; ``quality`` exp(lowest held-out loss - own): the ratio of perplexities, i.e. of the
    geometric-mean likelihoods of a held-out item.
    """
    parts: list[dict[str, float]] = [{} for _ in measurements]
    speeds = [m.speed for m in measurements if m.speed]
    if len(speeds) == len(measurements):
        for part, speed in zip(parts, speeds, strict=True):
            part["speed"] = speed / max(speeds)
    if column := memory_column(measurements):
        peaks = [getattr(measurement, column) for measurement in measurements]
        for part, peak in zip(parts, peaks, strict=True):
            part["memory"] = min(peaks) / peak
    losses = [m.heldout_loss for m in measurements if m.heldout_loss is not None]
    if len(losses) == len(measurements):
        for part, loss in zip(parts, losses, strict=True):
            part["quality"] = math.exp(min(losses) - loss)
    return parts


def weighted_score(parts: Mapping[str, float], weights: Weights) -> float:
    """100·Σ(w·part)/Σw over the parts that there are; a plain mean where none of those has weight."""
    weight_of = {name: getattr(weights, name) for name in parts}
    if sum(weight_of.values()) == 0:
        weight_of = dict.fromkeys(parts, 1.0)
    total = sum(weight_of.values())
    return 100 * sum(weight_of[name] * part for name, part in parts.items()) / total if total else 0.0


def _with_probe(trial: Trial, probe: Trial | None) -> Compared:
    measurement = trial.measurement or Measurement()
    if probe is not None:
        figures = {name: getattr(probe.measurement, name) for name in PROBED_COLUMNS}
        for column in MEMORY_COLUMNS:  # whichever took more is what has to fit
            own, theirs = getattr(measurement, column), figures[column]
            figures[column] = own if theirs is None or (own is not None and own > theirs) else theirs
        measurement = replace(measurement, **{name: it for name, it in figures.items() if it is not None})
    return Compared(trial=trial, measurement=measurement, probe=probe)
