"""How candidates stand in what they learnt: which are as good as the best, and how sure that is.

Knows nothing of speed and memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .comparison import Compared, relative_excess
from .domain import Comparison, Measurement, Relation, Trial
from .paired import (
    CONFIDENCE,
    Difference,
    Run,
    Spread,
    compare,
    each_confidence,
    seed_spread,
    standard_error,
)

WIDEST = 0.15
"""An interval that holds zero, and reaches further than this share of the loss to either side, leaves open
which learnt more: so far behind, a candidate is given up after one training (``training.STILL_IN``)."""

UNDECIDED = 0.03
"""A candidate that cannot be told from the best still has to look as good, up to this share of the loss."""


@dataclass(frozen=True, slots=True)
class Standings:
    """The losses of compared candidates, and what can be said of their differences."""

    compared: Sequence[Compared]
    losses: Sequence[float]
    """Of each, the mean over its seeds; lower is better."""
    runs: Sequence[Sequence[Run]]
    """Of each, one for each seed; none where rows were not kept."""
    spread: Spread | None
    confidence: float
    """Of each interval, so that all hold together with ``CONFIDENCE``."""

    def difference(self, first: int, second: int) -> Difference | None:
        """The loss of the first less that of the second; None where nothing is known of its error."""
        if self.spread is not None:
            return compare(self.runs[first], self.runs[second], self.spread)
        ours, theirs = (self.compared[index].measurement for index in (first, second))
        rows = min(ours.heldout_rows or 0, theirs.heldout_rows or 0)
        if ours.heldout_loss_se is None or theirs.heldout_loss_se is None or rows < 2:
            return None
        # Of independent means: too large rather than too small, since the rows are the same.
        error = math.hypot(ours.heldout_loss_se, theirs.heldout_loss_se)
        return Difference(self.losses[first] - self.losses[second], error**2, rows - 1)

    def relation(self, first: int, second: int) -> Relation:
        """Whether the first learnt more than the second; unknown where so few seeds leave all open."""
        difference = self.difference(first, second)
        if difference is None:
            return Relation.UNKNOWN
        found, half = difference.relation(self.confidence), difference.halfwidth(self.confidence)
        is_open = found is Relation.NO_DIFFERENCE and half > WIDEST * abs(self.losses[self.best])
        return Relation.UNKNOWN if is_open else found

    @property
    def best(self) -> int:
        """The one with the lowest loss."""
        return min(range(len(self.losses)), key=lambda index: self.losses[index])

    def as_good(self, within: float | None) -> list[bool]:
        """Which are as good as the best.

        Those whose loss is at most this share above it, and those that cannot be told from it and look worse
        by no more than ``UNDECIDED``.

        Args:
            within: None lets all pass.
        """
        if within is None:
            return [True] * len(self.losses)
        excess, best = relative_excess(self.losses), self.best
        return [
            share <= within or (share <= UNDECIDED and self._is_level(index, best))
            for index, share in enumerate(excess)
        ]

    def _is_level(self, first: int, second: int) -> bool:
        """The interval of their difference holds zero, however wide it is."""
        difference = self.difference(first, second)
        return difference is not None and difference.relation(self.confidence) is Relation.NO_DIFFERENCE

    def comparisons(self, chosen: int, order: Sequence[int]) -> tuple[Comparison, ...]:
        """The chosen candidate against each of the others, in this order."""
        found = []
        for other in order:
            if other == chosen:
                continue
            difference = self.difference(chosen, other)
            low, high = (None, None) if difference is None else difference.interval(self.confidence)
            found.append(
                Comparison(
                    trial_id=self.compared[other].trial.id,
                    difference=self.losses[chosen] - self.losses[other],
                    low=low,
                    high=high,
                    relation=self.relation(chosen, other),
                )
            )
        return tuple(found)


def standings(compared: Sequence[Compared]) -> Standings | None:
    """How these candidates stand; None where not all were trained and judged."""
    losses = [each.measurement.judged_loss for each in compared]
    known = [loss for loss in losses if loss is not None]
    if not known or len(known) < len(losses):
        return None
    runs = [[run for trial in each.replicates if (run := _run(trial)) is not None] for each in compared]
    complete = all(len(own) == len(each.replicates) > 0 for own, each in zip(runs, compared, strict=True))
    return Standings(
        compared=compared,
        losses=known,
        runs=runs,
        spread=seed_spread(runs) if complete else None,
        confidence=each_confidence(len(compared), CONFIDENCE),
    )


def run_of(trial: Trial, measurement: Measurement, loss: float) -> Run:
    """A training as it is compared: row by row where the loss is the held-out one."""
    return Run(loss, None if measurement.own_loss is not None else trial.heldout)


def with_seeds(each: Compared, found: Standings, index: int) -> Compared:
    """With the standard error of the loss over rows and seeds, in place of that over the rows of one run."""
    if found.spread is None or each.measurement.own_loss is not None:
        return each
    error = standard_error(found.runs[index], found.spread)
    if error is None:
        return each
    losses = [run.loss for run in found.runs[index]]
    measurement = replace(each.measurement, heldout_loss=fmean(losses), heldout_loss_se=error)
    return replace(each, measurement=measurement)


def _run(trial: Trial) -> Run | None:
    measurement = trial.measurement
    if measurement is None or measurement.judged_loss is None:
        return None
    if measurement.own_loss is None and trial.heldout is None:
        return None
    return run_of(trial, measurement, measurement.judged_loss)
