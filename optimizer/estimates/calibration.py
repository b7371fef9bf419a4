"""How far estimates were from measurements so far: what their intervals are made of.

An interval of 90 % needs 19 residuals of one kind of run (``intervals.least_residuals``), which no kind of
published run has: the intervals below are the worst that was seen, or floors, and estimates say that they are
not calibrated. Residuals are those that this prints under "residuals"; its docstring makes the environment:

    python benchmarks/published.py ../shared/data/published_runs.csv --stack build/stack --json
"""

from __future__ import annotations

from .intervals import conformal_factors

ALLOCATED_RESIDUALS = (0.0,) * 8
"""ln(measured / estimated) of plain runs on one GPU under their own libraries: all within 0.005 %."""

FLOOR_ALLOCATED = (0.97, 1.03)
"""Other libraries than those that run: with transformers 5 in place of 4.48 half of these estimates are
within 2.3 %, and the worst 8.4 % too low, as 5 keeps less of the logits. The floor stands for smaller
differences: trials run under the libraries that estimate."""

FLOOR_RESERVED = (0.83, 1.15)
"""Nobody published reserved bytes of a plain run on one GPU. What nvidia-smi showed of the eight above
leaves, without the 1.7 GiB that all of them have beyond (``overheads._LIBRARIES``), 0.998 to 1.001 of the
estimate in seven. One that filled its GPU took 0.84, as the allocator gives back what it has cached before it
fails. All had rows of one length; the upper end is room for lengths that vary, of which nothing is
published."""

SHARDED_RESIDUALS = (
    -0.0621,
    -0.0334,
    0.0087,
    0.0102,
    0.0168,
    0.0187,
    0.0211,
    0.0346,
    0.0365,
    0.0613,
    0.0674,
    0.0853,
    0.0964,
    0.098,
    0.1699,
    0.1941,
)
"""Of reserved bytes of FSDP1's runs on two GPUs (fsdp_qlora, whose libraries are not named; allocated bytes
of eight others are within 0.5 %): 4.8 % off at the median, mostly too low. Of FSDP2 and DeepSpeed nothing
comparable is published."""

ALLOCATED = conformal_factors(ALLOCATED_RESIDUALS, floor=FLOOR_ALLOCATED)
RESERVED = conformal_factors((), floor=FLOOR_RESERVED)
SHARDED = conformal_factors(SHARDED_RESIDUALS)
