"""How far estimates were from measurements so far: what their intervals are made of.

The residuals are those of ``benchmarks/published.py``, which prints them anew. Knows no run in particular.
"""

from __future__ import annotations

from .intervals import conformal_factors

FLOOR_ALLOCATED = (0.95, 1.05)
FLOOR_RESERVED = (0.93, 1.15)
"""Used until there are enough measurements for an interval of 90 %."""

ALLOCATED_RESIDUALS: tuple[float, ...] = ()
RESERVED_RESIDUALS: tuple[float, ...] = ()
"""ln(measured / estimated), one a published run."""

ALLOCATED = conformal_factors(ALLOCATED_RESIDUALS, floor=FLOOR_ALLOCATED)
RESERVED = conformal_factors(RESERVED_RESIDUALS, floor=FLOOR_RESERVED)
