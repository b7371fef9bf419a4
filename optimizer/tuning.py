"""Moves from one candidate to another that may learn more: other rates, more capacity, less alpha.

Each move answers something that was seen in a training. Knows nothing of budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median, stdev

from .domain import Candidate, Measurement, Method

RATE_STEP = math.sqrt(10)
"""Between neighbouring rates of a sweep: LoRA's loss is flat about its best rate, over half a decade or so
("LoRA Without Regret", Schulman et al. 2025, figure 2)."""

LEAST_HALF = 8
"""Steps that each half of a training must have to say anything about its direction."""

SPIKE = 3.0
"""A loss above so many times the median is a spike …"""

SPIKES = 2
"""… and so many of them make a training unstable."""


def at_rate(candidate: Candidate, steps: int) -> Candidate:
    """The candidate with its rate so many steps of a sweep up or down, to two significant digits."""
    rate = float(f"{candidate.learning_rate * RATE_STEP**steps:.1e}")
    return replace(candidate, learning_rate=rate)


def is_plateau(measurement: Measurement) -> bool:
    """The training loss no longer falls in the second half: by less than its standard errors can tell."""
    losses = [loss for loss in measurement.train_losses if loss is not None]
    half = losses[len(losses) // 2 :]
    quarter = len(half) // 2
    if quarter < LEAST_HALF:
        return False
    before, after = half[:quarter], half[-quarter:]
    error = math.hypot(stdev(before), stdev(after)) / math.sqrt(quarter)
    return fmean(before) - fmean(after) < error


def is_unstable(measurement: Measurement) -> bool:
    """The training loss jumps."""
    losses = [loss for loss in measurement.train_losses if loss is not None]
    if len(losses) < 2 * LEAST_HALF:
        return False
    late = losses[len(losses) // 4 :]
    middle = median(late)
    return middle > 0 and sum(loss > SPIKE * middle for loss in late) >= SPIKES


def with_less_alpha(candidate: Candidate) -> Candidate | None:
    """Half the alpha, hence half of what the adapter adds; None where there is none."""
    alpha = candidate.adapter.alpha
    if alpha is None:
        return None
    return replace(candidate, adapter=replace(candidate.adapter, alpha=alpha / 2))


def with_more_capacity(candidate: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of the next rank at the same targets, or of the same rank at more targets; nearest first."""
    own = candidate.adapter
    if own.method not in (Method.LORA, Method.ADALORA) or own.rank is None:
        return []
    alike = [
        other
        for other in candidates
        if other.adapter.method is own.method
        and other.adapter.use_rslora == own.use_rslora
        and other.adapter.use_dora == own.use_dora
        and other.adapter.rank is not None
    ]
    ranks = sorted({c.adapter.rank or 0 for c in alike if c.adapter.targets == own.targets})
    next_rank = next((rank for rank in ranks if rank > own.rank), None)
    higher = [c for c in alike if c.adapter.targets == own.targets and c.adapter.rank == next_rank]
    wider = sorted(
        (c for c in alike if c.adapter.rank == own.rank and set(c.adapter.targets) > set(own.targets)),
        key=lambda c: len(c.adapter.targets),
    )
    return [*higher, *wider]
