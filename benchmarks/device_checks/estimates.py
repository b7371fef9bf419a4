"""Estimates held against what trials measured: how far off they are, what is too far, and a table of both.

Knows nothing of how either came about: a trial's figures are JSON data, with the same names for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from device_checks.bench import Failed
from rankwise.optimizer.estimates.intervals import Fits

Figures = Mapping[str, Any]

MOST_OFF: Mapping[str, float] = {
    "peak_tensor_bytes": 0.0,
    "peak_allocated_bytes": 0.02,
    "peak_reserved_bytes": 0.04,
}
"""How far an estimate may be off, as a share of what was measured. Live tensors are told of a CPU only."""

REQUIRED_ON_GPU = ("peak_allocated_bytes", "peak_reserved_bytes")
REQUIRED_ON_CPU = ("peak_tensor_bytes",)

COLUMNS: Mapping[str, str] = {
    "peak_tensor_bytes": "live tensors, bytes",
    "peak_allocated_bytes": "allocated, GiB",
    "peak_reserved_bytes": "reserved, GiB",
    "peak_device_bytes": "device, GiB",
    "tokens_per_s": "tokens/s",
}
"""Of the table: all that is compared, whether or not it may be off."""


def errors_of(figures: Figures) -> dict[str, float]:
    """Estimated over measured, less 1, of all that was both estimated and measured."""
    told = figures["estimate"] or {}
    pairs = {name: (told.get(name), figures.get(name)) for name in COLUMNS}
    return {name: (one - other) / other for name, (one, other) in pairs.items() if one and other}


def require_close(figures: Figures, *, is_on_gpu: bool) -> None:
    """Raise Failed unless the estimate of a trial that ran is as near to it as it has to be."""
    told, errors = figures["estimate"], figures["estimate_errors"]
    required = REQUIRED_ON_GPU if is_on_gpu else REQUIRED_ON_CPU
    if missing := [name for name in required if name not in errors]:
        reason = told["reason"] or "it was not told, or not measured"
        raise Failed(f"no estimate of {', '.join(missing)} to compare: {reason}")
    if told["fits"] == Fits.NO:
        raise Failed(f"it ran, and the estimate was that it cannot: {told['reason']}")
    if wrong := [said_of(name, figures) for name in required if is_too_far(name, figures)]:
        raise Failed("; ".join(wrong))


def is_too_far(name: str, figures: Figures) -> bool:
    """Whether an error is larger than it may be.

    Where less memory is free than was estimated, the allocator gives back what it has cached before it fails:
    that less is reserved then is no error.
    """
    error, free = figures["estimate_errors"][name], figures["free_bytes"]
    if name == "peak_reserved_bytes" and free is not None and figures["estimate"]["peak_device_bytes"] > free:
        return -error > MOST_OFF[name]
    return abs(error) > MOST_OFF[name]


def said_of(name: str, figures: Figures) -> str:
    """An error in words."""
    told, measured, error = figures["estimate"][name], figures[name], figures["estimate_errors"][name]
    allowed = f"{MOST_OFF[name]:.0%} is allowed" if MOST_OFF[name] else "they must be equal"
    return f"{name}: {told:,} estimated, {measured:,} measured ({error:+.2%}; {allowed})"


def badness(errors: Mapping[str, float]) -> float:
    """The largest error as a multiple of what is allowed; infinite where nothing is."""
    judged = [(abs(errors[name]), most) for name, most in MOST_OFF.items() if name in errors]
    return max((error / most if most else math.inf for error, most in judged if error), default=0.0)


def table_of(trials: Iterable[tuple[str, Figures]]) -> list[str]:
    """Lines for people: estimate, measurement and error of each trial that has both, worst first."""
    rows = [(name, figures) for name, figures in trials if figures.get("estimate_errors")]
    if not rows:
        return []
    rows.sort(key=lambda row: badness(row[1]["estimate_errors"]), reverse=True)
    shown = [name for name in COLUMNS if any(name in figures["estimate_errors"] for _, figures in rows)]
    cells = [["estimated / measured", *(COLUMNS[name] for name in shown)]]
    cells += [[name, *(cell(each, figures) for each in shown)] for name, figures in rows]
    return aligned(cells)


def cell(name: str, figures: Figures) -> str:
    """One figure as estimated and as measured, and the error; of speed also the range that was told."""
    if name not in figures["estimate_errors"]:
        return "-"
    estimate, error = figures["estimate"], f"{figures['estimate_errors'][name]:+.2%}"
    told, measured = estimate[name], figures[name]
    if name == "tokens_per_s":
        span = f"{estimate['tokens_per_s_low']:,.0f} to {estimate['tokens_per_s_high']:,.0f}"
        return f"{told:,.0f} ({span}) / {measured:,.0f} {error}"
    if name == "peak_tensor_bytes":
        return f"{told:,} / {measured:,} {error}"
    return f"{told / 2**30:.3f} / {measured / 2**30:.3f} {error}"


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in cells]
