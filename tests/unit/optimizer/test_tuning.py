"""Moves answer what was seen, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Measurement, Method
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.tuning import (
    at_rate,
    is_plateau,
    is_unstable,
    with_less_alpha,
    with_more_capacity,
)


def measured(losses) -> Measurement:
    return Measurement(train_losses=tuple(losses))


def test_rates_move_by_half_a_decade(candidates):
    usual = replace(candidates[0], learning_rate=2e-4)
    assert at_rate(usual, 1).learning_rate == 6.3e-4
    assert at_rate(usual, 2).learning_rate == 2e-3
    assert at_rate(usual, -1).learning_rate == 6.3e-5
    assert at_rate(usual, 0) == usual


@pytest.mark.parametrize(
    ("losses", "flat"),
    [
        ([1.0, 0.9] * 20, True),
        ([2.0 - 0.04 * step for step in range(40)], False),
        ([2.0 - 0.1 * min(step, 10) + 0.01 * (step % 2) for step in range(40)], True),
        ([1.0] * 20, False),
        ([None] * 40, False),
    ],
    ids=["flat", "falling", "fallen and flat", "too short to say", "not finite"],
)
def test_a_plateau_is_a_second_half_that_no_longer_falls(losses, flat):
    assert is_plateau(measured(losses)) is flat


@pytest.mark.parametrize(
    ("losses", "jumps"),
    [
        ([1.0] * 20 + [9.0, 1.0, 8.0] + [1.0] * 5, True),
        ([1.0] * 20 + [9.0] + [1.0] * 7, False),
        ([9.0, 8.0, 7.0, 5.0] + [1.0] * 24, False),
        ([1.0, 9.0, 9.0], False),
    ],
    ids=["two jumps", "one jump", "a high start", "too short to say"],
)
def test_a_training_that_jumps_is_unstable(losses, jumps):
    assert is_unstable(measured(losses)) is jumps


def test_less_alpha_changes_nothing_else(candidates):
    lora = next(c for c in candidates if c.adapter.alpha)
    calmer = with_less_alpha(lora)
    assert calmer == replace(lora, adapter=replace(lora.adapter, alpha=lora.adapter.alpha / 2))
    assert calmer.shape_key == lora.shape_key
    assert with_less_alpha(next(c for c in candidates if c.adapter.alpha is None)) is None


def test_more_capacity_is_the_next_rank_then_more_targets(build):
    found = enumerate_candidates(build.facts(), build.request())
    candidates = list({candidate.adapter: candidate for candidate in found}.values())
    lora = [c for c in candidates if c.adapter.method is Method.LORA]
    plain = [c for c in lora if not (c.adapter.use_dora or c.adapter.use_rslora)]
    start = min(plain, key=lambda c: (c.adapter.rank, len(c.adapter.targets)))
    larger = with_more_capacity(start, candidates)
    assert larger
    first = larger[0].adapter
    assert (first.targets, first.rank > start.adapter.rank) == (start.adapter.targets, True)
    between = [
        c
        for c in plain
        if c.adapter.targets == first.targets and start.adapter.rank < c.adapter.rank < first.rank
    ]
    assert not between
    assert all(not (c.adapter.use_dora or c.adapter.use_rslora) for c in larger)
    wider = [c.adapter for c in larger[1:]]
    assert all(set(own.targets) > set(start.adapter.targets) for own in wider)
    assert [len(own.targets) for own in wider] == sorted(len(own.targets) for own in wider)
    ia3 = next(c for c in candidates if c.adapter.method is Method.IA3)
    assert with_more_capacity(ia3, candidates) == []
