"""How far estimates were from measurements so far: what their intervals are made of.

An interval of 90 % needs 19 residuals of one kind of run (``intervals.least_residuals``). Of plain runs on
one GPU only eight are published with all their settings, so that the intervals below are floors, and
estimates say that they are not calibrated.
"""

from __future__ import annotations

from .intervals import conformal_factors

FLOOR_ALLOCATED = (0.97, 1.03)
"""``benchmarks/published.py`` under the runs' own libraries: all eight within 0.005 %. Another version of
transformers than the one that runs makes up to a copy of the logits, usually under 3 %."""

FLOOR_RESERVED = (0.93, 1.15)
"""Ten FSDP runs with published reserved bytes: 3.8 % at the median, 12.9 % at the 95th percentile."""

FLOOR_SHARDED = (0.95, 1.18)
"""Over several ranks: eight FSDP runs, 7.4 % too low at the 95th percentile of allocated, nf4 up to 15 %."""

ALLOCATED = conformal_factors((), floor=FLOOR_ALLOCATED)
RESERVED = conformal_factors((), floor=FLOOR_RESERVED)
SHARDED = conformal_factors((), floor=FLOOR_SHARDED)
