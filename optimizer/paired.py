"""Whether one candidate learnt more than another: held-out losses compared on the same rows, over seeds.

Trainings differ by the rows that they happen to be judged on and by the seed that they began with. The rows
are the same for all, so their differences are compared; what seeds do is estimated from all candidates
together, starting from what was measured of other trainings. Knows nothing of what candidates are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from .domain import HeldoutScores, Relation

CONFIDENCE = 0.95
"""That all intervals of a study hold together."""

SEED_SPREAD = 0.01
"""Standard deviation between seeds of the held-out loss, as a share of it, before a study has seen any …"""

SEED_SPREAD_DEGREES = 0.5
"""… and what that is worth, in degrees of freedom: little, since on the tasks of ``benchmarks/advice.py`` it
lay between 0.1 % and 20 %."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training, judged."""

    loss: float
    rows: HeldoutScores | None = None
    """None where only the whole is known, as of a number that the user's command prints."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance of the difference that a seed makes to one candidate's loss and to no other's."""

    variance: float
    degrees: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One loss less another, with its standard error."""

    value: float
    of_rows: float
    """Variance that the choice of rows contributes whatever the seed, …"""
    row_degrees: float
    of_seeds: float = 0.0
    """… and that of seeds, with what a seed does to single rows."""
    seed_degrees: float = 1.0
    seen_in_rows: float = 0.0
    """Variance that rows alone show, what seeds do to single ones included: there is no less."""

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(max(self.of_rows + self.of_seeds, self.seen_in_rows))

    def halfwidth(self, confidence: float) -> float:
        """Of the two-sided interval with this confidence.

        Each part by its own quantile of Student's t, the squares added up (MOVER: Zou & Donner 2008). One
        quantile for both, at Satterthwaite's degrees of freedom, is too small where seeds happen to agree.
        """
        quantile = (1 + confidence) / 2

        def squared(variance: float, degrees: float) -> float:
            return student_t(quantile, degrees) ** 2 * variance if variance else 0.0

        both = squared(self.of_rows, self.row_degrees) + squared(self.of_seeds, self.seed_degrees)
        return math.sqrt(max(both, squared(self.seen_in_rows, self.row_degrees)))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Where the true difference lies, with this confidence."""
        half = self.halfwidth(confidence)
        return self.value - half, self.value + half

    def relation(self, confidence: float) -> Relation:
        """What can be said of the first: that its loss is lower (better), higher, or nothing."""
        low, high = self.interval(confidence)
        if high < 0:
            return Relation.BETTER
        return Relation.WORSE if low > 0 else Relation.NO_DIFFERENCE


def each_confidence(candidates: int, confidence: float = CONFIDENCE) -> float:
    """Of a single interval, so that those between all pairs of so many candidates hold together (Bonferroni).

    All pairs, since which of them is asked about is decided by the same figures.
    """
    pairs = max(1, candidates * (candidates - 1) // 2)
    return 1 - (1 - confidence) / pairs


def seed_spread(
    candidates: Sequence[Sequence[Run]],
    *,
    prior_share: float = SEED_SPREAD,
    prior_degrees: float = SEED_SPREAD_DEGREES,
) -> Spread:
    """What seeds do, from candidates that were each run with the same seeds, and a prior.

    The residual of a two-way table (candidates × seeds): what a seed does to all alike cancels in every
    difference. Where that is less than was seen elsewhere, it is shrunk towards that as in moderated t-tests
    (Smyth 2004, eq. 3), since two seeds of three candidates leave two degrees of freedom and may agree by
    chance. Where it is more, it stands alone: what was seen elsewhere makes no interval shorter.

    Args:
        candidates: each one's runs, at equal positions with equal seeds; later ones may be missing.
        prior_share: standard deviation as a share of the loss.
        prior_degrees: what the prior is worth.
    """
    level = fmean(abs(run.loss) for runs in candidates for run in runs)
    # One seed says nothing of what seeds do, and must not keep the others from saying it.
    repeated = [runs for runs in candidates if len(runs) > 1] or candidates
    seeds = min(map(len, repeated))
    table = [[run.loss for run in runs[:seeds]] for runs in repeated]
    degrees = (len(table) - 1) * (seeds - 1)
    prior = prior_degrees * (prior_share * level) ** 2
    if degrees == 0:
        return Spread(prior / prior_degrees, prior_degrees)
    columns = [fmean(column) for column in zip(*table, strict=True)]
    middle = fmean(columns)
    squares = sum(
        (value - fmean(row) - column + middle) ** 2
        for row in table
        for value, column in zip(row, columns, strict=True)
    )
    if squares / degrees > prior / prior_degrees:
        return Spread(squares / degrees, degrees)
    return Spread((prior + squares) / (prior_degrees + degrees), prior_degrees + degrees)


def compare(first: Sequence[Run], second: Sequence[Run], spread: Spread) -> Difference:
    """The difference of two candidates' mean losses.

    Its variance adds what the rows contribute (of differences row by row, a ratio estimate where rows hold
    different numbers of items) and what the seeds do; what single rows of single seeds differ by is in both,
    and counted once: as the seeds', since of a few seeds it is known no better than they are.

    Args:
        first: runs of one candidate.
        second: runs of the other, on the same rows.
        spread: of :func:`seed_spread`.
    """
    value = fmean(run.loss for run in first) - fmean(run.loss for run in second)
    of_seeds = spread.variance * (1 / len(first) + 1 / len(second))
    of_rows, degrees, in_both = _row_variance(first, second)
    return Difference(
        value,
        of_rows=max(of_rows - in_both, 0.0),
        row_degrees=max(1, degrees),
        of_seeds=of_seeds,
        seed_degrees=spread.degrees,
        seen_in_rows=of_rows,
    )


def standard_error(runs: Sequence[Run], spread: Spread) -> float | None:
    """Of a candidate's mean loss over rows and seeds; None where no rows are known."""
    residuals = _residuals(runs)
    if residuals is None or len(residuals) < 2:
        return None
    return math.sqrt(_variance_of_mean(residuals) + spread.variance / len(runs))


def student_t(quantile: float, degrees: float) -> float:
    """A quantile of Student's t."""
    from scipy.special import stdtrit  # a quarter of a second that other commands need not wait

    return float(stdtrit(degrees, quantile))


def _row_variance(first: Sequence[Run], second: Sequence[Run]) -> tuple[float, int, float]:
    """What the rows contribute, its degrees of freedom, and the part of it that seeds show as well."""
    ours, theirs = _residuals(first), _residuals(second)
    if ours is None or theirs is None or len(ours) != len(theirs) or len(ours) < 2:
        return 0.0, 0, 0.0
    rows = len(ours)
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    shared = sum(_rest(runs) / len(runs) for runs in (first, second)) / rows
    return _variance_of_mean(differences), rows - 1, shared


def _residuals(runs: Sequence[Run]) -> list[float] | None:
    """How far each row lies from the mean, over all runs: its part in the mean's linearised error."""
    tables = [_row_residuals(run.rows) for run in runs if run.rows is not None]
    if len(tables) != len(runs) or len({len(table) for table in tables}) != 1:
        return None
    return [fmean(column) for column in zip(*tables, strict=True)]


def _row_residuals(scores: HeldoutScores) -> list[float]:
    ratio, mean_items = scores.loss, fmean(scores.items)
    return [
        (loss - ratio * items) / mean_items for loss, items in zip(scores.losses, scores.items, strict=True)
    ]


def _variance_of_mean(residuals: Sequence[float]) -> float:
    middle = fmean(residuals)
    return sum((each - middle) ** 2 for each in residuals) / (len(residuals) * (len(residuals) - 1))


def _rest(runs: Sequence[Run]) -> float:
    """Variance of a single row of a single run about that row's mean over the runs."""
    tables = [_row_residuals(run.rows) for run in runs if run.rows is not None]
    if len(tables) < 2:
        return 0.0
    squares = 0.0
    for column in zip(*tables, strict=True):
        middle = fmean(column)
        squares += sum((each - middle) ** 2 for each in column)
    return squares / ((len(tables) - 1) * (len(tables[0]) - 1))
