"""The roofline adds up, ranges narrow with measurements, and published runs lie in their ranges."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import InputError
from rankwise.optimizer.estimates.gpus import CATALOGUE, find_gpu
from rankwise.optimizer.estimates.speed import (
    START,
    USUAL_SHARE,
    Work,
    efficiency_from,
    estimate_speed,
    step_seconds,
)

A100 = find_gpu("A100-80GB")
WORK = Work(flops_by_dtype={"bfloat16": 1e15}, bytes_moved=1e12, kernels=10_000)
sizes = st.floats(1e6, 1e18)


def test_arithmetic_and_moving_add_up():
    arithmetic = 1e15 / (312e12 * 0.848 * START.compute)
    moving = 1e12 / (2039e9 * START.memory)
    assert step_seconds(WORK, A100) == pytest.approx(arithmetic + moving)


def test_launching_counts_where_it_takes_longest():
    small = Work(flops_by_dtype={"bfloat16": 1e9}, bytes_moved=1e6, kernels=10_000)
    assert step_seconds(small, A100) == pytest.approx(10_000 * START.launch_s)


def test_a_device_of_unknown_matmul_share_gets_the_usual_one():
    unknown = replace(A100, matmul_share=None)
    only = Work(flops_by_dtype={"bfloat16": 1e15}, bytes_moved=0, kernels=0)
    assert step_seconds(only, unknown) / step_seconds(only, A100) == pytest.approx(0.848 / USUAL_SHARE)


def test_every_dtype_is_at_its_own_rate():
    def seconds(dtype: str) -> float:
        return step_seconds(Work(flops_by_dtype={dtype: 1e15}, bytes_moved=0, kernels=0), A100)

    assert seconds("tf32") == pytest.approx(2 * seconds("bfloat16"))
    assert seconds("float32") == pytest.approx(16 * seconds("bfloat16"))
    both = Work(flops_by_dtype={"bfloat16": 1e15, "float32": 1e15}, bytes_moved=0, kernels=0)
    assert step_seconds(both, A100) == pytest.approx(seconds("bfloat16") + seconds("float32"))


def test_a_dtype_without_a_unit_is_refused_with_another():
    with pytest.raises(InputError, match="float16") as refused:
        estimate_speed(WORK, 1000, find_gpu("T4"))
    assert "T4" in refused.value.message
    half = Work(flops_by_dtype={"float16": 1e15}, bytes_moved=0, kernels=0)
    assert estimate_speed(half, 1000, find_gpu("T4")).tokens_per_s_mid > 0


@given(sizes, sizes, st.integers(0, 10**6), st.sampled_from(CATALOGUE))
def test_more_work_is_never_faster(flops, moved, kernels, gpu):
    work = Work(flops_by_dtype={"float16": flops}, bytes_moved=moved, kernels=kernels)
    for more in (
        replace(work, flops_by_dtype={"float16": 2 * flops}),
        replace(work, bytes_moved=2 * moved),
        replace(work, kernels=2 * kernels),
    ):
        assert step_seconds(more, gpu) >= step_seconds(work, gpu)


@given(sizes, st.floats(1, 1e7), st.sampled_from(CATALOGUE), st.floats(0.1, 0.98))
def test_a_range_holds_its_middle_and_widens_with_coverage(flops, tokens, gpu, coverage):
    work = Work(flops_by_dtype={"float16": flops}, bytes_moved=flops / 100, kernels=100)
    estimate = estimate_speed(work, tokens, gpu, coverage=coverage)
    assert estimate.tokens_per_s_low < estimate.tokens_per_s_mid < estimate.tokens_per_s_high
    assert estimate.tokens_per_s_mid == pytest.approx(tokens / estimate.step_s)
    wider = estimate_speed(work, tokens, gpu, coverage=coverage + 0.01)
    assert wider.tokens_per_s_low < estimate.tokens_per_s_low
    assert wider.tokens_per_s_high > estimate.tokens_per_s_high


def width(efficiency) -> float:
    estimate = estimate_speed(WORK, 1000, A100, efficiency)
    return math.log(estimate.tokens_per_s_high / estimate.tokens_per_s_low)


def test_the_quantile_is_students():
    # From tables: t(0.95) = 2.132 for 4 degrees of freedom, 1.812 for 10.
    for freedom, quantile in ((4, 2.132), (10, 1.812)):
        half = width(replace(START, freedom=freedom)) / 2
        assert half / START.predictive_log_sd() == pytest.approx(quantile, rel=0.002)


def test_nothing_measured_changes_nothing():
    assert efficiency_from([], A100) == START


def test_ranges_narrow_with_measurements_but_not_below_the_scatter():
    slow = 1.3 * step_seconds(WORK, A100)
    learnt = [efficiency_from([(WORK, slow)] * count, A100) for count in range(40)]
    widths = [width(efficiency) for efficiency in learnt]
    assert widths == sorted(widths, reverse=True)
    for count, efficiency in enumerate(learnt[1:], start=1):
        assert efficiency.measurements == count
        assert efficiency.freedom == START.freedom + count - 1
        assert efficiency.predictive_log_sd() >= START.within_log_sd / math.sqrt(count)
    assert widths[1] > widths[0] / 3
    assert widths[39] < widths[1]
    assert step_seconds(WORK, A100, learnt[39]) == pytest.approx(slow, rel=0.01)
    assert step_seconds(WORK, A100) < step_seconds(WORK, A100, learnt[1]) < slow


def test_scattered_measurements_keep_the_range_wide():
    steady = [(WORK, step_seconds(WORK, A100))] * 8
    scattered = [
        (work, seconds * factor) for (work, seconds), factor in zip(steady, [0.6, 1.6] * 4, strict=True)
    ]
    assert width(efficiency_from(scattered, A100)) > 3 * width(efficiency_from(steady, A100))


def test_learnt_ranges_cover_what_comes_next():
    rng = random.Random(4)
    base = step_seconds(WORK, A100)
    inside = rounds = 0
    for _ in range(1500):
        device = rng.gauss(0, START.between_log_sd)
        seen = [
            base * math.exp(device + rng.gauss(0, START.within_log_sd)) for _ in range(rng.randrange(0, 6))
        ]
        following = 1000 / (base * math.exp(device + rng.gauss(0, START.within_log_sd)))
        estimate = estimate_speed(WORK, 1000, A100, efficiency_from([(WORK, s) for s in seen], A100))
        inside += estimate.tokens_per_s_low <= following <= estimate.tokens_per_s_high
        rounds += 1
    assert inside / rounds >= 0.9 - 3 * math.sqrt(0.09 / rounds)


def test_a_learnt_efficiency_is_learnt_on():
    seconds = 1.2 * step_seconds(WORK, A100)
    first = efficiency_from([(WORK, seconds)] * 3, A100)
    second = efficiency_from([(WORK, seconds)] * 3, A100, first)
    assert second.measurements == 6
    assert abs(math.log(step_seconds(WORK, A100, second) / seconds)) < abs(
        math.log(step_seconds(WORK, A100, first) / seconds)
    )


def test_a_published_run_lies_in_its_range():
    # Mistral-7B, LoRA, checkpointed, 4 x 4096 tokens on an A100-80GB: 3324 tokens/s (fms_acceleration).
    # 3 passes over 6.98e9 weights of layers, 2 over the head, attention; eager norms and activations move
    # about 109 MB a token (benchmarks/fit_speed.py counts them).
    tokens = 4 * 4096
    attention = 32 * 2 * 4 * 4096**2 * 4096 * 9 / 2
    flops = 2 * tokens * (3 * 6.98e9 + 2 * 0.131e9) + attention
    work = Work(flops_by_dtype={"bfloat16": flops}, bytes_moved=tokens * 109e6, kernels=8000)
    estimate = estimate_speed(work, tokens, A100)
    assert estimate.tokens_per_s_low < 3324 < estimate.tokens_per_s_high
    assert estimate.tokens_per_s_high / estimate.tokens_per_s_low < 3


@pytest.mark.parametrize(
    "figures",
    [
        {"flops_by_dtype": {}, "bytes_moved": 0, "kernels": 0},
        {"flops_by_dtype": {"float16": -1}, "bytes_moved": 1, "kernels": 1},
        {"flops_by_dtype": {"float16": math.nan}, "bytes_moved": 1, "kernels": 1},
        {"flops_by_dtype": {}, "bytes_moved": math.inf, "kernels": 1},
    ],
)
def test_work_that_is_none_is_refused(figures):
    with pytest.raises(InputError):
        Work(**figures)


@pytest.mark.parametrize("arguments", [{"tokens": 0}, {"tokens": math.nan}, {"tokens": 1, "coverage": 1}])
def test_a_speed_of_nothing_is_refused(arguments):
    with pytest.raises(InputError):
        estimate_speed(WORK, gpu=A100, **arguments)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_a_time_that_was_not_measured_is_refused(seconds):
    with pytest.raises(InputError):
        efficiency_from([(WORK, seconds)], A100)
