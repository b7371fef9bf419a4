"""Conformal intervals cover what they promise, say when they cannot, and give verdicts."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import InputError
from rankwise.optimizer.estimates.intervals import (
    Fits,
    conformal_factors,
    least_residuals,
    log_ratios,
    verdict,
)

residual_lists = st.lists(st.floats(-2, 2), max_size=60)


@pytest.mark.parametrize("count", [19, 25, 60])
def test_a_new_measurement_is_covered_as_often_as_promised(count):
    # Skewed, and not centred: estimates that are mostly too low, sometimes by far.
    rng = random.Random(count)
    draw = lambda: rng.expovariate(5) + rng.gauss(0.05, 0.02)  # noqa: E731
    rounds, below, above = 4000, 0, 0
    for _ in range(rounds):
        factors = conformal_factors([draw() for _ in range(count)], 0.9)
        assert factors.calibrated
        low, high = factors.of(1.0)
        measured = math.exp(draw())
        below += measured < low
        above += measured > high
    # Each side misses 5 % at most; three standard deviations of the simulation on top.
    slack = 3 * math.sqrt(0.05 * 0.95 / rounds)
    assert below / rounds <= 0.05 + slack
    assert above / rounds <= 0.05 + slack
    assert above / rounds >= 0.05 - slack - 1 / (count + 1)


def test_the_rank_of_a_finite_sample():
    residuals = [step / 100 for step in range(1, 40)]
    # ceil(40 · 0.95) = 38: the second largest.
    assert conformal_factors(residuals, 0.9).high == pytest.approx(math.exp(0.38))
    assert conformal_factors(residuals, 0.95).high == pytest.approx(math.exp(0.39))


def test_the_sides_are_told_apart():
    factors = conformal_factors([-0.3] * 2 + [0.0] * 30 + [0.05] * 8, 0.9)
    assert factors.low == pytest.approx(math.exp(-0.3))
    assert factors.high == pytest.approx(math.exp(0.05))


@pytest.mark.parametrize(("coverage", "least"), [(0.9, 19), (0.95, 39), (0.8, 9), (0.99, 199)])
def test_too_few_residuals_are_said_and_the_widest_is_given(coverage, least):
    assert least_residuals(coverage) == least
    residuals = [-0.2, 0.1] * least
    assert conformal_factors(residuals[:least], coverage).calibrated
    few = conformal_factors(residuals[: least - 1], coverage, floor=(0.9, 1.3))
    assert not few.calibrated
    assert few.low == pytest.approx(math.exp(-0.2))
    assert few.high == 1.3
    none = conformal_factors([], coverage, floor=(0.9, 1.3))
    assert (none.low, none.high, none.residuals, none.calibrated) == (0.9, 1.3, 0, False)


@given(residual_lists, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_more_coverage_is_never_narrower(residuals, one, other):
    less, more = (conformal_factors(residuals, coverage) for coverage in sorted((one, other)))
    assert more.low <= less.low <= 1 <= less.high <= more.high


@given(residual_lists, st.floats(0.0, 1.0))
def test_larger_residuals_never_lower_the_high_end(residuals, shift):
    before = conformal_factors(residuals)
    after = conformal_factors([residual + shift for residual in residuals])
    assert after.high >= before.high
    assert after.low >= before.low


def test_log_ratios_are_above_zero_where_the_estimate_was_too_low():
    assert log_ratios([(10, 20), (20, 10)]) == pytest.approx([math.log(2), -math.log(2)])


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (-1, 1), (math.nan, 1), (1, math.inf)])
def test_ratios_of_nonsense_are_refused(pair):
    with pytest.raises(InputError):
        log_ratios([pair])


@pytest.mark.parametrize("coverage", [0, 1, -1, math.nan])
def test_a_coverage_that_is_none_is_refused(coverage):
    with pytest.raises(InputError):
        conformal_factors([0.1], coverage)


def test_a_residual_that_is_not_finite_is_refused():
    with pytest.raises(InputError):
        conformal_factors([math.nan])


def test_verdicts():
    assert verdict(10, 20, 20) is Fits.YES
    assert verdict(10, 20, 19) is Fits.TOO_CLOSE
    assert verdict(10, 20, 10) is Fits.TOO_CLOSE
    assert verdict(10, 20, 9) is Fits.NO


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_more_memory_never_makes_a_verdict_worse(one, other, capacity, more):
    order = [Fits.NO, Fits.TOO_CLOSE, Fits.YES]
    low, high = sorted((one, other))
    assert order.index(verdict(low, high, capacity)) <= order.index(verdict(low, high, capacity + more))


@pytest.mark.parametrize("sizes", [(2, 1, 3), (-1, 1, 3), (1, 2, -3), (math.nan, 1, 2), (1, 2, math.nan)])
def test_an_interval_that_is_none_is_refused(sizes):
    with pytest.raises(InputError):
        verdict(*sizes)
