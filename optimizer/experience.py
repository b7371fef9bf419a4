"""What earlier studies teach: which adapters to begin with, and at which rates.

A prior and no more: it orders what is tried, and what is measured replaces it. Knows nothing of where
studies are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from .comparison import comparable_trials, relative_excess
from .domain import Adapter, Candidate, Known, Rung, Trial
from .evidence import by_adapter

PROVEN = 0.02
"""Adapters whose losses were this close to the lowest come first …"""

POOR = 0.1
"""… and those further from it than this last."""


def learn(histories: Sequence[Sequence[Trial]]) -> tuple[Known, ...]:
    """What the finalists of these studies, oldest first, say of their adapters; the best first."""
    excesses: dict[Adapter, list[float]] = {}
    rates: dict[Adapter, float] = {}
    for trials in histories:
        compared = [
            (each.trial.candidate, loss)
            for each in comparable_trials(trials, None)
            if each.trial.plan.rung is Rung.TRAIN and (loss := each.measurement.judged_loss) is not None
        ]
        if len({candidate.adapter for candidate, _ in compared}) < 2:
            continue
        shares = relative_excess([loss for _, loss in compared])
        found: set[Adapter] = set()
        for share, (candidate, _) in sorted(zip(shares, compared, strict=True), key=lambda pair: pair[0]):
            if candidate.adapter not in found:
                found.add(candidate.adapter)
                excesses.setdefault(candidate.adapter, []).append(share)
                rates[candidate.adapter] = candidate.learning_rate
    known = [
        Known(adapter=adapter, learning_rate=rates[adapter], excess=fmean(own), studies=len(own))
        for adapter, own in excesses.items()
    ]
    return tuple(sorted(known, key=lambda each: each.excess))


def by_experience(candidates: Sequence[Candidate], known: Sequence[Known]) -> tuple[Candidate, ...]:
    """Adapters that proved good come first and poor ones last, at the rates that suited them."""
    of_adapter = {each.adapter: each for each in known}
    groups = by_adapter(
        replace(candidate, learning_rate=of_adapter[candidate.adapter].learning_rate)
        if candidate.adapter in of_adapter
        else candidate
        for candidate in candidates
    )

    def place(adapter: Adapter) -> tuple[int, float]:
        excess = of_adapter[adapter].excess if adapter in of_adapter else None
        if excess is None or PROVEN < excess <= POOR:
            return 1, 0.0
        return (0 if excess <= PROVEN else 2), excess

    return tuple(candidate for adapter in sorted(groups, key=place) for candidate in groups[adapter])
