"""What is hoped of an adapter and of its rates, and which rate comes next."""

from __future__ import annotations

import math

import pytest

from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.promise import (
    Arm,
    chance_of_level,
    hope_of_rate,
    hope_of_seed,
    hope_untried,
    told_by_one_seed,
)


@pytest.fixture
def arm_of(build):
    candidate = enumerate_candidates(build.facts(), build.request())[0]

    def make(rates, *, place=0, shortfall=0.0, gave_up=False):
        return Arm(candidate=candidate, place=place, shortfall=shortfall, rates=rates, gave_up=gave_up)

    return make


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, 0),
        ({0: 1.0}, 1),
        ({0: 1.0, 1: 1.1}, -1),
        ({0: 1.0, 1: 0.9}, 2),
        ({0: 1.0, 1: 0.9, 2: 0.8}, None),
        ({0: 1.0, 1: 1.1, -1: 0.9}, -2),
        ({0: 1.0, 1: 1.1, -1: 1.2}, None),
        ({0: 1.0, 1: None}, -1),
        ({0: None}, -1),
        ({0: None, -1: None, -2: None}, None),
    ],
)
def test_rates_climb_from_the_best_the_higher_side_first(arm_of, rates, expected):
    assert arm_of(rates).next_rate() == expected


def test_what_fails_otherwise_than_by_diverging_gets_no_lower_rate(arm_of):
    assert arm_of({0: None}, gave_up=True).next_rate() is None


def test_hope_falls_with_the_place_and_with_published_quality_but_not_of_the_first(arm_of):
    assert hope_untried(arm_of({})) == hope_untried(arm_of({}, shortfall=0.2)) == 1.0
    second = hope_untried(arm_of({}, place=1))
    assert 1.0 > second > hope_untried(arm_of({}, place=2))
    assert hope_untried(arm_of({}, place=1, shortfall=0.2)) == pytest.approx(second / math.e)
    assert hope_untried(arm_of({0: None})) == 0.5


def test_hope_of_a_rate_falls_with_what_it_is_behind_and_halves_with_each_known_side(arm_of):
    assert hope_of_rate(arm_of({0: 1.0}), 0.0) == 1.0
    assert hope_of_rate(arm_of({0: 1.0}), 0.1) == pytest.approx(1 / math.e)
    assert hope_of_rate(arm_of({0: 1.0, 1: 1.1}), 0.0) == 0.5
    assert hope_of_rate(arm_of({0: 1.0, 1: 1.1, -1: 1.2}), 0.0) == 0.25


def test_hope_of_a_seed_is_what_it_may_change():
    assert hope_of_seed(0.0, 0.0, 1) == 0.0
    assert hope_of_seed(0.05, 0.0, 1) == 0.0
    level = [hope_of_seed(0.0, 0.15, seeds) for seeds in (1, 2, 3, 4)]
    assert level == sorted(level, reverse=True)
    assert level[0] == 1.0, "seeds that move the loss by more than rates do"
    assert hope_of_seed(0.0, 0.1, 1) == pytest.approx(1 / math.sqrt(2))
    assert hope_of_seed(0.0, 0.01, 1) < 0.1
    assert hope_of_seed(0.0, 0.15, 1) > hope_of_seed(0.1, 0.15, 1) > hope_of_seed(0.3, 0.15, 1) > 0.0


def test_what_seeds_do_makes_a_distance_count_less(arm_of):
    arm = arm_of({0: 1.0})
    assert hope_of_rate(arm, 0.1, doubt=0.0) == hope_of_rate(arm, 0.1)
    assert hope_of_rate(arm, 0.1, doubt=0.1) == pytest.approx(math.exp(-1 / math.sqrt(2)))
    assert hope_of_rate(arm, 0.0, doubt=0.1) == 1.0


def test_hope_beside_another_rate_than_the_best_counts_the_sides_of_that_rate(arm_of):
    arm = arm_of({0: 1.1, 1: 1.0, 2: 1.2})
    assert arm.beside(0) == -1
    assert arm.beside(1) is None
    assert hope_of_rate(arm, 0.0, beside=0) == 0.5
    assert hope_of_rate(arm, 0.0) == 0.25


def test_what_looks_worse_may_be_level_by_as_much_as_seeds_leave_open():
    assert chance_of_level(0.0, 0.0) == chance_of_level(0.0, 0.1) == 1.0
    assert chance_of_level(0.05, 0.0) == 0.0
    assert chance_of_level(0.196, 0.1) == pytest.approx(0.05, abs=1e-3)


def test_one_loss_tells_less_where_seeds_move_it_more():
    assert told_by_one_seed(0.0) == 1.0
    assert told_by_one_seed(0.1) == pytest.approx(1 / math.sqrt(2))


def test_what_is_out_of_reach_has_no_hope_and_overflows_nothing():
    assert hope_of_seed(1e300, 1e-3, 1) == pytest.approx(0.0, abs=1e-100)
