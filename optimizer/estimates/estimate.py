"""An estimate as users see it: memory with its interval, whether it fits, speed on a device of the catalogue.

Knows nothing of how a need was worked out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import InputError
from ..domain import Method
from .calibration import ALLOCATED, RESERVED, SHARDED
from .communication import Traffic, time_of, with_communication
from .gpus import Gpu
from .intervals import Factors, Fits, verdict
from .need import Need
from .overheads import Range, context_bytes, nccl_bytes
from .speed import START, Efficiency, SpeedEstimate, estimate_speed
from .speed import Work as StepWork
from .tape import Kind, Work

CONTEXT = "cuda_context"
"""What NVML shows of a process beyond its tensors, as an entry of a breakdown."""
UNUSED = "unused_by_allocator"
"""What the allocator has reserved and no tensor holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an estimate is judged against."""

    gpu: Gpu | None = None
    limit_bytes: int | None = None
    """Of device memory; with a GPU, the lesser of both counts."""
    gpus: int = 1
    efficiency: Efficiency = START
    factors: tuple[Factors, Factors] | None = None
    """Of measured over estimated bytes, allocated and reserved; None takes those of published runs."""

    @property
    def capacity_bytes(self) -> int | None:
        """Bytes that a process may hold on the device, its CUDA context included; None without a limit."""
        known = [self.limit_bytes, None if self.gpu is None else self.gpu.memory_bytes]
        return min((value for value in known if value is not None), default=None)

    @property
    def overhead(self) -> Range:
        """What NVML shows beyond what the allocator has reserved."""
        capability = None if self.gpu is None else self.gpu.compute_capability
        context, channels = context_bytes(capability), nccl_bytes(self.gpus)
        return Range(*(a + b for a, b in zip(context, channels, strict=True)))

    @property
    def limit_for_allocator_bytes(self) -> int | None:
        """What may be reserved, so that even the high end of an estimate of it fits."""
        if self.capacity_bytes is None:
            return None
        return max(0, int((self.capacity_bytes - self.overhead.high) / self.spread[1].high))

    @property
    def limit_at_least_bytes(self) -> int:
        """What may be allocated, or even the low end of an estimate of it does not fit; needs a limit."""
        allocated, _ = self.spread
        return max(0, int(((self.capacity_bytes or 0) - self.overhead.low) / allocated.low))

    @property
    def spread(self) -> tuple[Factors, Factors]:
        """Of measured over estimated bytes, allocated and reserved."""
        if self.factors is not None and self.gpus == 1:
            return self.factors
        return (SHARDED, SHARDED) if self.gpus > 1 else (ALLOCATED, RESERVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a process will hold at its peak, each with an interval; see :attr:`calibrated`."""

    allocated: Range
    reserved: Range
    device: Range
    """As NVML shows it: reserved, CUDA context and libraries."""
    calibrated: bool
    """The intervals come from enough measurements to hold nine times in ten; else they are floors."""


def memory_of(need: Need, target: Target) -> Memory:
    """The need with its intervals."""
    for_allocated, for_reserved = target.spread
    allocated = _spread(need.allocated_bytes, for_allocated)
    # What is reserved holds what is allocated, at either end.
    reserved = _spread(need.reserved_bytes, for_reserved)
    reserved = Range(*(max(a, r) for a, r in zip(allocated, reserved, strict=True)))
    device = Range(*(r + o for r, o in zip(reserved, target.overhead, strict=True)))
    return Memory(
        allocated=allocated,
        reserved=reserved,
        device=device,
        calibrated=for_allocated.calibrated and for_reserved.calibrated,
    )


def fits(memory: Memory, target: Target) -> Fits | None:
    """Whether it runs on the target; None where there is no limit.

    Short of memory, the allocator gives back what it has cached: at the low end a run needs only what is
    allocated.
    """
    capacity = target.capacity_bytes
    if capacity is None:
        return None
    return verdict(memory.allocated.low + target.overhead.low, memory.device.high, capacity)


def speed_of(work: Work, tokens: float, target: Target, traffic: Traffic) -> SpeedEstimate | None:
    """Tokens a second on the target, talking included; None without a GPU, or without a unit for the dtype.

    Args:
        work, traffic: of a step of one process.
        tokens: of a step, of one process or of all: as they are to be counted.
    """
    if target.gpu is None:
        return None
    step = StepWork(flops_by_dtype=dict(work.flops), bytes_moved=work.moved_bytes, kernels=work.kernels)
    try:
        speed = estimate_speed(step, tokens, target.gpu, target.efficiency)
    except InputError:
        return None
    return with_communication(speed, tokens, time_of(traffic, target.gpu, target.gpus))


def breakdown_of(need: Need, target: Target, method: Method) -> Mapping[str, int]:
    """What the device's memory at the peak is for, largest first: all that NVML shows, to the byte."""
    parts = {kind.value: size for kind, size in need.breakdown.items()}
    parts[UNUSED] = need.reserved_bytes - sum(parts.values())
    if not method.has_adapter:  # what is trained is on the tape as an adapter's
        parts[Kind.BASE_WEIGHTS] = parts.get(Kind.BASE_WEIGHTS, 0) + parts.pop(Kind.ADAPTER, 0)
    parts[CONTEXT] = target.overhead.mid
    return {name: size for name, size in sorted(parts.items(), key=lambda part: -part[1]) if size}


def _spread(size: int, factors: Factors) -> Range:
    low, high = factors.of(size)
    return Range(int(low), size, int(high))
