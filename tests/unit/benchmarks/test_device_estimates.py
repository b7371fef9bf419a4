"""Estimates against measurements on a device: what is compared, what is too far off, and the table."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
GIB = 2**30


@pytest.fixture
def estimates() -> Iterator[Any]:
    """The benchmark's module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from device_checks import estimates

        yield estimates
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def failed(estimates: Any) -> Any:
    """What a check raises."""
    return estimates.Failed


def on_gpu(
    estimates: Any, *, free: int | None = 80 * GIB, told: Any = None, **measured: Any
) -> dict[str, Any]:
    """Figures of a trial on a GPU whose estimate was right, with these values instead."""
    right = {
        "peak_allocated_bytes": 10 * GIB,
        "peak_reserved_bytes": 12 * GIB,
        "peak_device_bytes": 13 * GIB,
        "tokens_per_s": 1000.0,
    }
    span = {"tokens_per_s_low": 800.0, "tokens_per_s_high": 1200.0}
    estimate = {"fits": "yes", "reason": None, "peak_tensor_bytes": None, **right, **span, **(told or {})}
    figures = {"peak_tensor_bytes": 9 * GIB, **right, **measured, "estimate": estimate, "free_bytes": free}
    return {**figures, "estimate_errors": estimates.errors_of(figures)}


def on_cpu(estimates: Any, told: int, measured: int) -> dict[str, Any]:
    """Figures of a trial on a CPU."""
    estimate = {"fits": None, "reason": None, "peak_tensor_bytes": told, "peak_allocated_bytes": None}
    figures = {
        "estimate": estimate,
        "peak_tensor_bytes": measured,
        "peak_allocated_bytes": None,
        "free_bytes": None,
    }
    return {**figures, "estimate_errors": estimates.errors_of(figures)}


def test_errors_are_shares_of_what_was_measured(estimates: Any) -> None:
    figures = on_gpu(estimates, peak_allocated_bytes=8 * GIB, peak_device_bytes=None, tokens_per_s=1250.0)
    assert figures["estimate_errors"] == {
        "peak_allocated_bytes": 0.25,
        "peak_reserved_bytes": 0.0,
        "tokens_per_s": -0.2,
    }
    assert estimates.errors_of({**figures, "estimate": None}) == {}


@pytest.mark.parametrize(
    ("name", "measured", "is_close"),
    [
        ("peak_allocated_bytes", 10 * GIB / 1.019, True),
        ("peak_allocated_bytes", 10 * GIB / 1.021, False),
        ("peak_allocated_bytes", 10 * GIB / 0.981, True),
        ("peak_allocated_bytes", 10 * GIB / 0.979, False),
        ("peak_reserved_bytes", 12 * GIB / 1.039, True),
        ("peak_reserved_bytes", 12 * GIB / 1.041, False),
        ("peak_reserved_bytes", 12 * GIB / 0.961, True),
        ("peak_reserved_bytes", 12 * GIB / 0.959, False),
        ("peak_device_bytes", 26 * GIB, True),
        ("tokens_per_s", 10.0, True),
    ],
)
def test_on_a_gpu_allocated_and_reserved_bytes_are_judged(
    estimates: Any, failed: Any, name: str, measured: float, is_close: bool
) -> None:
    figures = on_gpu(estimates, **{name: round(measured)})
    if is_close:
        estimates.require_close(figures, is_on_gpu=True)
        return
    with pytest.raises(failed, match=f"{name}: .* estimated, .* measured") as caught:
        estimates.require_close(figures, is_on_gpu=True)
    assert f"{figures['estimate_errors'][name]:+.2%}" in str(caught.value)


def test_short_of_memory_less_may_be_reserved_and_not_more(estimates: Any, failed: Any) -> None:
    squeezed = on_gpu(estimates, free=12 * GIB, peak_reserved_bytes=11 * GIB)
    estimates.require_close(squeezed, is_on_gpu=True)
    with pytest.raises(failed, match="peak_reserved_bytes"):
        estimates.require_close({**squeezed, "free_bytes": 13 * GIB}, is_on_gpu=True)
    with pytest.raises(failed, match="peak_reserved_bytes"):
        estimates.require_close(
            on_gpu(estimates, free=12 * GIB, peak_reserved_bytes=14 * GIB), is_on_gpu=True
        )


def test_on_a_cpu_live_tensors_must_be_equal(estimates: Any, failed: Any) -> None:
    estimates.require_close(on_cpu(estimates, 12_450_304, 12_450_304), is_on_gpu=False)
    with pytest.raises(failed, match=r"12,449,792 estimated, 12,450,304 measured .*must be equal"):
        estimates.require_close(on_cpu(estimates, 12_449_792, 12_450_304), is_on_gpu=False)


def test_nothing_to_compare_is_a_failure(estimates: Any, failed: Any) -> None:
    untold = {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "reason": "no such kernel"}
    with pytest.raises(failed, match="peak_allocated_bytes, peak_reserved_bytes to compare: no such kernel"):
        estimates.require_close(on_gpu(estimates, told=untold), is_on_gpu=True)
    with pytest.raises(failed, match="peak_reserved_bytes to compare: it was not told, or not measured"):
        estimates.require_close(on_gpu(estimates, peak_reserved_bytes=None), is_on_gpu=True)
    with pytest.raises(failed, match="peak_allocated_bytes"):
        estimates.require_close(on_cpu(estimates, 512, 512), is_on_gpu=True)


def test_a_trial_that_ran_was_not_to_be_ruled_out(estimates: Any, failed: Any) -> None:
    figures = on_gpu(estimates, told={"fits": "no", "reason": "it needs at least 90 GiB of 80 GiB"})
    with pytest.raises(failed, match=r"it ran, .* at least 90 GiB"):
        estimates.require_close(figures, is_on_gpu=True)


def test_the_table_begins_with_what_is_worst_for_what_is_allowed(estimates: Any) -> None:
    trials = [
        ("exact", on_gpu(estimates)),
        ("reserved", on_gpu(estimates, peak_reserved_bytes=round(12 * GIB / 1.03))),
        ("allocated", on_gpu(estimates, peak_allocated_bytes=round(10 * GIB / 1.02))),
        ("skipped", {}),
        ("compiled", {"estimate": None, "estimate_errors": {}}),
        ("slow", on_gpu(estimates, peak_device_bytes=None, tokens_per_s=10.0)),
    ]
    head, *rows = estimates.table_of(trials)
    assert [row.split()[0] for row in rows] == ["allocated", "reserved", "exact", "slow"]
    assert "live tensors" not in head, "there is no estimate of them"
    assert len({len(line) for line in [head, *rows]}) == 1
    assert "10.000 / 9.804 +2.00%" in rows[0]
    assert "12.000 / 11.650 +3.00%" in rows[1]
    assert rows[3].endswith("-  1,000 (800 to 1,200) / 10 +9900.00%")
    assert estimates.table_of([("skipped", {})]) == []


def test_nothing_is_worse_than_a_byte_where_none_is_allowed(estimates: Any) -> None:
    assert estimates.badness({"peak_tensor_bytes": -1e-9}) == math.inf
    assert estimates.badness({"peak_tensor_bytes": 0.0}) == 0.0
    assert estimates.badness({"peak_allocated_bytes": -0.04, "peak_reserved_bytes": 0.04}) == 2.0
    assert estimates.badness({"tokens_per_s": 3.0}) == 0.0
