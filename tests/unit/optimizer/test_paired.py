"""Paired comparisons keep their promises on simulated trainings, and agree with textbook cases."""

from __future__ import annotations

import random
from statistics import NormalDist

import pytest

from rankwise.optimizer.domain import HeldoutScores, Relation
from rankwise.optimizer.paired import (
    Run,
    Spread,
    compare,
    each_confidence,
    seed_spread,
    standard_error,
    student_t,
)

ROWS = 200


class Task:
    """Draws trainings whose rows and seeds differ as asked; every candidate has loss 1 unless shifted."""

    def __init__(
        self,
        seed: int,
        *,
        of_rows: float = 0.5,
        of_pairs: float = 0.1,
        of_seeds: float = 0.01,
        of_both: float = 0.05,
    ) -> None:
        self.chance = random.Random(seed)
        self.rows = [self.chance.gauss(0.0, of_rows) for _ in range(ROWS)]
        self.of_pairs, self.of_seeds, self.of_both = of_pairs, of_seeds, of_both

    def candidate(self, seeds: int, *, shift: float = 0.0) -> list[Run]:
        own = [self.chance.gauss(0.0, self.of_pairs) for _ in range(ROWS)]
        return [self.run(own, shift) for _ in range(seeds)]

    def run(self, own: list[float], shift: float) -> Run:
        level = 1.0 + shift + self.chance.gauss(0.0, self.of_seeds)
        losses = [
            level + a + b + self.chance.gauss(0.0, self.of_both) for a, b in zip(self.rows, own, strict=True)
        ]
        rows = HeldoutScores(losses=tuple(losses), items=(1,) * ROWS)
        return Run(rows.loss, rows)


def test_intervals_hold_as_often_as_they_promise():
    held = 0
    for seed in range(400):
        task = Task(seed)
        runs = [task.candidate(2) for _ in range(3)]
        low, high = compare(runs[0], runs[1], seed_spread(runs)).interval(0.9)
        held += low <= 0.0 <= high
    assert 0.86 <= held / 400 <= 0.95


def test_equal_candidates_are_rarely_called_different_and_a_planted_difference_is_found():
    wrong = found = 0
    for seed in range(300):
        task = Task(seed, of_pairs=0.05)
        runs = [task.candidate(4) for _ in range(3)]
        better = task.candidate(4, shift=-0.05)
        confidence = each_confidence(3)
        spread = seed_spread(runs)
        pairs = ((0, 1), (0, 2), (1, 2))
        relations = {compare(runs[a], runs[b], spread).relation(confidence) for a, b in pairs}
        wrong += relations != {Relation.NO_DIFFERENCE}
        runs[0] = better
        found += compare(better, runs[1], seed_spread(runs)).relation(confidence) is Relation.BETTER
    assert wrong / 300 <= 0.05
    assert found / 300 >= 0.9


def test_rows_that_all_find_hard_are_no_noise():
    """The same rows: what makes a row hard for both cancels."""
    task = Task(0, of_rows=5.0, of_pairs=0.0, of_seeds=0.0)
    first, second = task.candidate(2), task.candidate(2, shift=0.1)
    difference = compare(first, second, Spread(1e-6, 4.0))
    assert difference.error < 0.01
    assert standard_error(first, Spread(1e-6, 4.0)) > 0.1
    assert difference.relation(0.95) is Relation.BETTER
    assert compare(second, first, Spread(1e-6, 4.0)).relation(0.95) is Relation.WORSE


def test_rows_count_by_their_items():
    """A ratio of sums: a row of nine tokens weighs nine times one of a single token."""
    one = HeldoutScores(losses=(9.0, 5.0), items=(9, 1))
    other = HeldoutScores(losses=(18.0, 5.0), items=(9, 1))
    assert one.loss == pytest.approx(1.4)
    difference = compare([Run(one.loss, one)], [Run(other.loss, other)], Spread(0.0, 4.0))
    assert difference.value == pytest.approx(-0.9)
    # By hand: residuals (9-12.6+18·..)/5 of the difference are ±0.18, their mean's variance 0.18²·2/2.
    first = ((9 - 1.4 * 9) - (18 - 2.3 * 9)) / 5
    second = ((5 - 1.4) - (5 - 2.3)) / 5
    assert difference.error == pytest.approx(((first - second) ** 2 / 4) ** 0.5)


def test_what_a_seed_does_to_all_alike_is_no_spread():
    level = [Run(1.0), Run(1.3), Run(0.8)]
    shifted = [Run(run.loss + 0.5) for run in level]
    spread = seed_spread([level, shifted], prior_share=0.1, prior_degrees=2.0)
    assert spread.degrees == 4.0
    mean = sum(abs(run.loss) for run in [*level, *shifted]) / 6
    assert spread.variance == pytest.approx(2.0 * (0.1 * mean) ** 2 / 4.0)


def test_one_seed_each_rests_on_the_prior():
    spread = seed_spread([[Run(2.0)], [Run(4.0)]], prior_share=0.1, prior_degrees=3.0)
    assert spread == Spread(pytest.approx(0.09), 3.0)
    difference = compare([Run(2.0)], [Run(4.0)], spread)
    assert difference.error == pytest.approx((2 * 0.09) ** 0.5)
    assert difference.halfwidth(0.95) == pytest.approx(student_t(0.975, 3.0) * difference.error)


def test_what_was_seen_elsewhere_makes_no_interval_shorter():
    """Seeds that move losses more than elsewhere count with their own degrees of freedom alone."""
    runs = [[Run(1.0), Run(1.5)], [Run(1.4), Run(0.9)], [Run(1.2), Run(1.3)]]
    spread = seed_spread(runs)
    alone = seed_spread(runs, prior_share=1e-9, prior_degrees=1e-9)
    assert spread.degrees == 2
    assert spread.variance == pytest.approx(alone.variance, rel=1e-6)
    agreeing = [[Run(1.0), Run(1.001)], [Run(1.4), Run(1.4)], [Run(1.2), Run(1.201)]]
    assert seed_spread(agreeing).degrees == 2.5
    assert (
        seed_spread(agreeing).variance
        > 10 * seed_spread(agreeing, prior_share=1e-9, prior_degrees=1e-9).variance
    )


def test_what_seeds_do_to_single_rows_is_known_no_better_than_seeds():
    """A seed gets some rows very wrong, each seed others, as of images: pairs of equal candidates."""
    wrong = held = 0
    for seed in range(400):
        task = Task(seed, of_pairs=0.0, of_seeds=0.1, of_both=1.0)
        runs = [task.candidate(2) for _ in range(2)]
        difference = compare(runs[0], runs[1], seed_spread(runs))
        wrong += difference.relation(0.95) is not Relation.NO_DIFFERENCE
        low, high = difference.interval(0.9)
        held += low <= 0.0 <= high
        assert difference.error >= difference.seen_in_rows**0.5
    assert wrong / 400 <= 0.05
    assert held / 400 >= 0.88


def test_a_candidate_with_one_seed_does_not_hide_what_seeds_do_to_others():
    both = [[Run(1.0), Run(1.2)], [Run(1.1), Run(1.0)]]
    spread = seed_spread([*both, [Run(1.0)]])
    assert spread.degrees == seed_spread(both).degrees
    assert spread.variance == pytest.approx(seed_spread(both).variance, rel=0.01)


def test_losses_that_are_equal_everywhere_are_no_difference():
    rows = HeldoutScores(losses=(1.0, 1.0), items=(1, 1))
    difference = compare([Run(1.0, rows)], [Run(1.0, rows)], Spread(0.0, 4.0))
    assert difference.relation(0.95) is Relation.NO_DIFFERENCE


def test_quantiles():
    assert student_t(0.975, 4) == pytest.approx(2.776, abs=1e-3)
    assert student_t(0.95, 1e6) == pytest.approx(NormalDist().inv_cdf(0.95), abs=1e-4)
    assert each_confidence(3) == pytest.approx(1 - 0.05 / 3)
    assert each_confidence(1) == pytest.approx(0.95)
