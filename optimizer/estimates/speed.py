"""How long an optimizer step takes: a roofline, with an efficiency that is learnt from measurements.

    step = slowdown · max(Σ flops / (rate · share · compute) + bytes / (bandwidth · memory), kernels · launch)

Kernels run one after the other, so the time of arithmetic and that of moving bytes add up; the host launches
kernels ahead of the device, so launching counts only where it takes longer than both. ``share`` is what torch
attains of the data sheet's rate with large matrices (see :mod:`.gpus`). Always a range, never one figure.
Knows nothing of models: the work comes from whoever traced the step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ...errors import InputError
from .gpus import CATALOGUE, Gpu

MICROSECOND = 1e-6

USUAL_SHARE = statistics.median(gpu.matmul_share for gpu in CATALOGUE if gpu.matmul_share is not None)
"""Stands in for devices whose attained rate nobody published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one optimizer step does, over all of its micro-batches."""

    flops_by_dtype: Mapping[str, float]
    """Of matrix products and attention (a multiply and an add count 2), by the dtype they are computed in, as
    :meth:`.gpus.Gpu.flops` names them. A causal attention kernel computes half of its square."""
    bytes_moved: float
    """Read and written in device memory by all kernels other than matrix products and attention, which hide
    theirs behind their arithmetic: norms, activations, residuals, casts, dequantisation, loss, optimizer."""
    kernels: int
    """Launched on the device."""

    def __post_init__(self) -> None:
        values = (*self.flops_by_dtype.values(), self.bytes_moved, self.kernels)
        if not all(0 <= value < math.inf for value in values) or not any(values):
            raise InputError(
                f"{dict(self.flops_by_dtype)} operations, {self.bytes_moved} bytes moved and "
                f"{self.kernels} kernels are not the work of a step",
                next_step="give finite numbers of 0 or more, of which one is not 0",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """How much of a device's rates real training attains, and how sure that is."""

    compute: float
    """Share of the rate that large matrix products attain."""
    memory: float
    """Share of the data sheet's bandwidth."""
    launch_s: float
    """Of one kernel, on the host."""
    slowdown: float = 1.0
    """Learnt: measured over estimated time on this device."""
    within_log_sd: float
    """Of ln(measured / estimated) between runs on one device with one stack."""
    between_log_sd: float
    """Of its mean between devices and stacks; what measurements on a device take away."""
    freedom: int
    """Degrees of freedom behind ``within_log_sd``."""
    measurements: int = 0
    """On the device itself."""

    def predictive_log_sd(self) -> float:
        """Standard deviation of ln(measured / estimated) of the next run."""
        return math.hypot(self.within_log_sd, self.between_log_sd)


START = Efficiency(
    compute=0.90,
    memory=0.54,
    launch_s=15 * MICROSECOND,
    within_log_sd=0.06,
    between_log_sd=0.20,
    freedom=4,
)
"""Before anything was measured on a device: ``benchmarks/fit_speed.py`` on 33 runs of one A100-80GB, which
scatter by 0.056 within a stack; stacks that the fit did not see were off by 0.18 on average. Devices other
than an A100 were not seen at all, hence 0.20. Few stacks, hence few degrees of freedom. The launch time is a
bound: 512-token samples with some 7,700 kernels took 0.134 s (ms_swift)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedEstimate:
    """A range that holds the measurement with the coverage that was asked for."""

    tokens_per_s_low: float
    tokens_per_s_mid: float
    tokens_per_s_high: float
    step_s: float
    """Of the middle."""


def estimate_speed(
    work: Work, tokens: float, gpu: Gpu, efficiency: Efficiency = START, *, coverage: float = 0.9
) -> SpeedEstimate:
    """Tokens a second of a step that does ``work`` on ``tokens`` tokens.

    Raises:
        InputError: the device has no unit for a dtype of the work, or tokens or coverage make no sense.
    """
    if not 0 < tokens < math.inf:
        raise InputError(f"a step of {tokens} tokens has no speed", next_step="give at least one token")
    step_s = step_seconds(work, gpu, efficiency)
    widening = math.exp(_student_t(coverage, efficiency) * efficiency.predictive_log_sd())
    middle = tokens / step_s
    return SpeedEstimate(
        tokens_per_s_low=middle / widening,
        tokens_per_s_mid=middle,
        tokens_per_s_high=middle * widening,
        step_s=step_s,
    )


def step_seconds(work: Work, gpu: Gpu, efficiency: Efficiency = START) -> float:
    """The middle of the range: seconds that one step takes (formula in the module's docstring)."""
    attained = efficiency.compute * (USUAL_SHARE if gpu.matmul_share is None else gpu.matmul_share)
    arithmetic_s = sum(flops / (_rate(gpu, dtype) * attained) for dtype, flops in work.flops_by_dtype.items())
    moving_s = work.bytes_moved / (gpu.bandwidth_bytes_per_s * efficiency.memory)
    return efficiency.slowdown * max(arithmetic_s + moving_s, work.kernels * efficiency.launch_s)


def efficiency_from(
    measurements: Iterable[tuple[Work, float]], gpu: Gpu, start: Efficiency = START
) -> Efficiency:
    """What measured steps on one device say about its efficiency: a shift, and a narrower range.

    Normal model on ln(measured / estimated): the device's mean has the prior N(0, between²), runs scatter
    around it with within². The scatter pools the start's (``freedom``) with the measured one, the mean is
    pulled to 0 by its prior, and what is unknown of it stays in ``between_log_sd``. So no measurement leaves
    the start as it is, one takes away part of the doubt, and the range never gets narrower than runs scatter.

    Args:
        measurements: work of a step and the seconds that it took, on this device with one stack.

    Raises:
        InputError: a time is not positive and finite, or the device has no unit for a dtype.
    """
    ratios = [_log_ratio(seconds, step_seconds(work, gpu, start)) for work, seconds in measurements]
    if not ratios:
        return start
    count = len(ratios)
    mean = statistics.fmean(ratios)
    freedom = start.freedom + count - 1
    scatter = start.freedom * start.within_log_sd**2 + sum((ratio - mean) ** 2 for ratio in ratios)
    within = scatter / freedom
    between = start.between_log_sd**2
    doubt = between * within / (count * between + within) if between else 0.0
    pull = count * between / (count * between + within) if between else 0.0
    return replace(
        start,
        slowdown=start.slowdown * math.exp(pull * mean),
        within_log_sd=math.sqrt(within),
        between_log_sd=math.sqrt(doubt),
        freedom=freedom,
        measurements=start.measurements + count,
    )


def _rate(gpu: Gpu, dtype: str) -> float:
    rate = gpu.flops(dtype)
    if rate is None:
        raise InputError(
            f"{gpu.name} has no unit for {dtype}, so no speed can be estimated",
            next_step="use float16" if dtype == "bfloat16" else "use float32",
        )
    return rate


def _log_ratio(measured_s: float, estimated_s: float) -> float:
    if not 0 < measured_s < math.inf:
        raise InputError(
            f"a step of {measured_s} s was not measured", next_step="leave runs without a time out"
        )
    return math.log(measured_s / estimated_s)


def _student_t(coverage: float, efficiency: Efficiency) -> float:
    """Two-sided quantile of Student's t, by its Cornish–Fisher expansion (Abramowitz and Stegun 26.7.5)."""
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage} is not between 0 and 1", next_step="use 0.9, for example")
    z = statistics.NormalDist().inv_cdf((1 + coverage) / 2)
    v = efficiency.freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
