"""Intervals around estimates, calibrated on how wrong earlier estimates were: split conformal prediction.

Under- and over-prediction are told apart: an estimate that is too low ends in an out-of-memory error, one
that is too high only wastes memory. Knows nothing of what is estimated.

Source of the rank: Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World* (2005); Lei et al.,
*Distribution-Free Predictive Inference for Regression* (2018), with one quantile for each side as in Romano,
Patterson and Candès (2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ...errors import InputError

ROUNDING = 1e-9
"""Keeps 19.000000000000004 from being rounded up to 20."""


class Fits(StrEnum):
    """Whether something fits into memory, as far as its interval can tell."""

    YES = "yes"
    NO = "no"
    TOO_CLOSE = "too close to call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What to multiply an estimate with for the two ends of its interval."""

    low: float
    """At most 1."""
    high: float
    """At least 1."""
    residuals: int
    """How many earlier estimates this rests on."""
    calibrated: bool
    """False where these are too few for the coverage: the ends are then the worst that was ever seen, or the
    given floor where that is wider, and the coverage is not promised."""

    def of(self, estimate: float) -> tuple[float, float]:
        """The interval around an estimate, in its unit."""
        return estimate * self.low, estimate * self.high


def log_ratios(pairs: Iterable[tuple[float, float]]) -> tuple[float, ...]:
    """ln(measured / estimated) of (estimated, measured) pairs: above 0 where the estimate was too low.

    Raises:
        InputError: a value is not a positive finite number.
    """
    ratios = []
    for estimated, measured in pairs:
        if not (0 < estimated < math.inf and 0 < measured < math.inf):
            raise InputError(
                f"an estimate of {estimated} and a measurement of {measured} cannot be compared",
                next_step="give positive, finite values of one unit",
            )
        ratios.append(math.log(measured / estimated))
    return tuple(ratios)


def conformal_factors(
    residuals: Sequence[float], coverage: float = 0.9, *, floor: tuple[float, float] = (1.0, 1.0)
) -> Factors:
    """The factors within which a new measurement lies with a probability of at least ``coverage``.

    Each side misses with at most half of what the coverage leaves. A side's end is the residual of rank
    ceil((n + 1)·(1 - (1 - coverage) / 2)), counted towards that side; where n is too small for that rank, the
    farthest residual or the floor, whichever is wider, and ``calibrated`` is False. An end never passes 1:
    an estimate lies within its own interval even where all earlier ones erred to one side.

    The promise holds for residuals that are exchangeable with the new one: same kind of runs, same metric.

    Args:
        residuals: as of :func:`log_ratios`.
        coverage: between 0 and 1.
        floor: factors (low, high) that are used where there are too few residuals.

    Raises:
        InputError: ``coverage`` is not between 0 and 1, or a residual is not finite.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage} is not between 0 and 1", next_step="use 0.9, for example")
    if not all(map(math.isfinite, residuals)):
        raise InputError("a residual is not finite", next_step="leave runs without a measurement out")
    least, most = floor
    ordered = sorted(residuals)
    rank = _rank(len(ordered), coverage)
    if rank > len(ordered):
        return Factors(
            low=min(1.0, least, *map(math.exp, ordered[:1])),
            high=max(1.0, most, *map(math.exp, ordered[-1:])),
            residuals=len(ordered),
            calibrated=False,
        )
    return Factors(
        low=min(1.0, math.exp(ordered[-rank])),
        high=max(1.0, math.exp(ordered[rank - 1])),
        residuals=len(ordered),
        calibrated=True,
    )


def least_residuals(coverage: float = 0.9) -> int:
    """How many residuals a calibrated interval needs: 19 at 90 %."""
    side = (1 - coverage) / 2
    return math.ceil(1 / side - 1 - ROUNDING)


def verdict(low_bytes: float, high_bytes: float, capacity_bytes: float) -> Fits:
    """YES where even the high end fits, NO where even the low end does not, TOO_CLOSE between them.

    Raises:
        InputError: the low end lies above the high one, or a value is negative or not a number.
    """
    if not (0 <= low_bytes <= high_bytes and capacity_bytes >= 0):
        raise InputError(
            f"{low_bytes} to {high_bytes} bytes in {capacity_bytes} is not an interval and a capacity",
            next_step="give the low end first, and sizes of 0 or more",
        )
    if high_bytes <= capacity_bytes:
        return Fits.YES
    return Fits.NO if low_bytes > capacity_bytes else Fits.TOO_CLOSE


def _rank(count: int, coverage: float) -> int:
    """Counted from 1; more than ``count`` where there are too few residuals."""
    return math.ceil((count + 1) * (1 - (1 - coverage) / 2) - ROUNDING)
