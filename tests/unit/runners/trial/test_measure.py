from __future__ import annotations

import random
import statistics

import numpy as np
import pytest

from rankwise.runners.trial.evaluation import ratio_with_error
from rankwise.runners.trial.loop import Step
from rankwise.runners.trial.measure import (
    ProcessMemory,
    StoppingRule,
    finite_or_none,
    speed_of,
    student_t_975,
    time_steps,
)

MIB = 1024 * 1024


def make_step(seconds: float, tokens: int = 1_000, number: int = 0) -> Step:
    return Step(
        number=number, loss=1.0, tokens=tokens, rows=8, seconds=seconds, learning_rate=1e-4, skipped=False
    )


def draw_steps(random_: random.Random, count: int) -> list[Step]:
    """Steps at 1,000 tokens/s on the average, with token counts that vary and times that jitter."""
    tokens = [random_.randint(500, 1_500) for _ in range(count)]
    return [make_step(n / 1_000 * random_.lognormvariate(-0.005, 0.1), n) for n in tokens]


class TestSpeed:
    def test_ratios_of_sums(self) -> None:
        speed = speed_of([make_step(1.0, 100), make_step(3.0, 500)])
        assert (speed.tokens_per_s, speed.samples_per_s) == (150.0, 4.0)
        assert (speed.step_s_mean, speed.seconds, speed.steps) == (2.0, 4.0, 2)
        assert speed.step_s_std == pytest.approx(2**0.5)

    def test_one_step_has_no_interval(self) -> None:
        speed = speed_of([make_step(1.0)])
        assert speed.rel_halfwidth is None
        assert speed.step_s_std is None

    def test_steady_steps_are_known_exactly(self) -> None:
        assert speed_of([make_step(0.5)] * 5).rel_halfwidth == 0.0

    @pytest.mark.parametrize("count", [5, 10, 40])
    def test_the_interval_covers_the_true_rate(self, count: int) -> None:
        random_ = random.Random(count)
        covered = 0
        for _ in range(1_000):
            speed = speed_of(draw_steps(random_, count))
            assert speed.rel_halfwidth is not None
            covered += abs(speed.tokens_per_s - 1_000) <= speed.rel_halfwidth * speed.tokens_per_s
        assert 0.91 <= covered / 1_000 <= 0.98


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.706), (3, 3.182), (4, 2.776), (9, 2.262), (39, 2.023), (10_000, 1.960)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, table: float) -> None:
    assert student_t_975(degrees) == pytest.approx(table, rel=3e-3)


class TestStopping:
    rule = StoppingRule(rel_halfwidth=0.03, min_steps=5, max_steps=40, max_seconds=10.0)

    def test_steady_steps_need_the_minimum(self) -> None:
        assert len(time_steps(iter([make_step(0.1)] * 100), self.rule)) == 5

    def test_jittery_steps_go_on_until_the_interval_is_tight(self) -> None:
        steps = [make_step(0.1 if n % 2 else 0.12) for n in range(100)]
        taken = time_steps(iter(steps), self.rule)
        assert 5 < len(taken) < 40
        tight, before = speed_of(taken).rel_halfwidth, speed_of(taken[:-1]).rel_halfwidth
        assert tight is not None
        assert before is not None
        assert tight <= 0.03 < before

    def test_wild_steps_end_at_the_cap_of_steps(self) -> None:
        steps = [make_step(0.01 if n % 2 else 0.2) for n in range(100)]
        assert len(time_steps(iter(steps), self.rule)) == 40

    def test_slow_wild_steps_end_at_the_cap_of_seconds(self) -> None:
        steps = [make_step(0.1 if n % 2 else 2.0) for n in range(100)]
        taken = time_steps(iter(steps), self.rule)
        assert sum(step.seconds for step in taken[:-1]) < 10.0 <= sum(step.seconds for step in taken)

    def test_the_minimum_comes_before_the_cap_of_seconds(self) -> None:
        assert len(time_steps(iter([make_step(60.0), make_step(1.0)] * 10), self.rule)) == 5

    def test_takes_no_step_too_many(self) -> None:
        steps = iter([make_step(0.1, number=n) for n in range(10)])
        time_steps(steps, self.rule)
        assert next(steps).number == 5

    def test_too_few_steps_are_what_there_is(self) -> None:
        assert len(time_steps(iter([make_step(0.1)] * 3), self.rule)) == 3


class TestRatio:
    def test_equal_counts_give_the_mean_and_its_standard_error(self) -> None:
        values = [1.0, 2.0, 4.0, 9.0]
        ratio, error = ratio_with_error(values, [1] * 4)
        assert ratio == 4.0
        assert error == pytest.approx(statistics.stdev(values) / 2)

    def test_a_single_row_has_no_error(self) -> None:
        assert ratio_with_error([3.0], [2]) == (1.5, None)

    def test_agrees_with_the_bootstrap(self) -> None:
        generator = np.random.default_rng(0)
        counts = generator.integers(5, 60, 300)
        totals = counts * generator.gamma(4, 0.5, 300)
        _, error = ratio_with_error(totals.tolist(), counts.tolist())
        draws = generator.integers(0, 300, (4_000, 300))
        bootstrap = (totals[draws].sum(1) / counts[draws].sum(1)).std()
        assert error == pytest.approx(bootstrap, rel=0.05)

    def test_rows_without_a_scored_item_carry_nothing(self) -> None:
        assert ratio_with_error([2.0, 0.0, 4.0], [1, 0, 1])[0] == 3.0


def test_process_memory_sees_a_peak_that_is_gone() -> None:
    memory = ProcessMemory()
    before_bytes = memory.peak_bytes()
    block = np.ones(64 * MIB, dtype=np.uint8)
    del block
    assert 60 * MIB < memory.peak_bytes() - before_bytes < 80 * MIB


def test_each_process_memory_starts_afresh() -> None:
    block = np.ones(64 * MIB, dtype=np.uint8)
    del block
    assert ProcessMemory().peak_bytes() < 16 * MIB


@pytest.mark.parametrize(
    ("value", "kept"), [(None, None), (1.5, 1.5), (float("nan"), None), (float("inf"), None), (0.0, 0.0)]
)
def test_only_numbers_are_kept(value: float | None, kept: float | None) -> None:
    assert finite_or_none(value) == kept
