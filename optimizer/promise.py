"""How much is hoped of a training: of an adapter not tried yet, of a rate beside the best that was.

Hope stands for the chance that the training beats what is known. Knows nothing of what a training costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from .domain import Candidate

PLACE = 0.95
"""Hope of an untried adapter falls by this factor from one place of the list to the next: the list stands in
the order of what was asked for and of earlier studies, …"""

PUBLISHED = 0.2
"""… and is a third where published quality is this share below that of the best method in the list: twice
``BEHIND``, since that was seen elsewhere."""

BEHIND = 0.1
"""Hope of an adapter that is this share of the loss behind the best is a third: a rate off by half a decade
often costs as much."""

KNOWN_SIDE = 0.5
"""Hope where one of the two rates beside an adapter's best is known to be worse already."""

BEYOND_REACH = 30.0
"""Standard deviations, of which more are as good as infinitely many: nothing is expected there, and squares
would overflow where losses are tiny."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An adapter at the settings that it is trained with, and what its rates came to."""

    MOST_RATES: ClassVar[int] = 2
    """Half decades that rates may lie from the usual one, to either side."""

    candidate: Candidate
    """At its method's usual rate."""
    place: int
    """In the order of what is to be tried; 0 comes first."""
    shortfall: float
    """Of its method's published quality below the best in the list, as a share."""
    rates: Mapping[int, float | None]
    """Half decades from the usual rate → held-out loss; None where that training did not succeed."""
    gave_up: bool = False
    """Some training failed otherwise than by diverging."""

    @property
    def best(self) -> int | None:
        """The rate of the lowest loss; None where none succeeded."""
        losses = {step: loss for step, loss in self.rates.items() if loss is not None}
        return min(losses, key=losses.__getitem__) if losses else None

    def next_rate(self) -> int | None:
        """The rate beside the best one, the higher first; after nothing but divergence the next lower one.

        None where both are known, too far from the usual one, or the adapter fails for other reasons.
        """
        if not self.rates:
            return 0
        if self.best is None:
            step = min(self.rates) - 1
            return None if self.gave_up or step < -self.MOST_RATES else step
        return self.beside(self.best)

    def beside(self, step: int) -> int | None:
        """The rate beside this one that is not known yet, the higher first; None where there is none."""
        both = (step + 1, step - 1)
        return next((each for each in both if each not in self.rates and abs(each) <= self.MOST_RATES), None)


def hope_untried(arm: Arm) -> float:
    """Of an adapter without any success: half as much after each divergence."""
    known = math.exp(-arm.shortfall / PUBLISHED) if arm.place else 1.0
    return float(known * PLACE**arm.place * KNOWN_SIDE ** len(arm.rates))


def hope_of_rate(arm: Arm, behind: float, *, beside: int | None = None, doubt: float = 0.0) -> float:
    """Of the rates beside one of an adapter's.

    Args:
        arm: with a success.
        behind: how far that rate lies behind the best of all, as a share.
        beside: that rate; None: the adapter's best.
        doubt: standard error of how far it lies behind, as a share: what seeds do.
    """
    step = arm.best if beside is None else beside
    known = sum(step is not None and step + side in arm.rates for side in (1, -1))
    return math.exp(-behind / math.hypot(BEHIND, doubt)) * float(KNOWN_SIDE**known)


def chance_of_level(behind: float, doubt: float) -> float:
    """That what looks worse is none the worse, of 1: twice the chance that it is better.

    Args:
        behind: how far it lies behind, as a share.
        doubt: standard error of that.
    """
    return math.erfc(behind / doubt / math.sqrt(2)) if doubt else float(behind == 0.0)


def hope_of_seed(behind: float, share: float, seeds: int) -> float:
    """Of another seed of what was trained: what it may be expected to gain by changing which is the best.

    The knowledge gradient (Frazier, Powell & Dayanik 2008), as a share of what a training as good as the best
    would be expected to gain if losses of untried ones lay ``BEHIND`` about it: seeds that move the loss by
    little promise little, and each further one promises less.

    Args:
        behind: how far its mean over seeds lies behind the best one's, as a share; of the best, how far it is
            ahead of the next.
        share: standard deviation between seeds, as a share of the loss.
        seeds: that it was trained with.
    """
    moved = share / math.sqrt(seeds * (seeds + 1))
    return min(1.0, _expected_gain(behind, moved) / _expected_gain(0.0, BEHIND))


def told_by_one_seed(share: float) -> float:
    """How much one loss of something new tells, of 1: what is expected of it moves by less than that.

    Args:
        share: standard deviation between seeds, as a share of the loss.
    """
    return BEHIND / math.hypot(BEHIND, share)


def _expected_gain(behind: float, moved: float) -> float:
    """Of a normal change of this standard deviation, beyond what it is behind."""
    if moved == 0.0:
        return 0.0
    z = min(behind / moved, BEYOND_REACH)
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return moved * (density - z * math.erfc(z / math.sqrt(2)) / 2)
