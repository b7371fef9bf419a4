"""Measuring speed and memory of a session: what is counted, and when enough has been counted.

Knows nothing about how trials are launched or stored.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

from ..adalora import rank_tensors
from ..recipe import Example
from ..spreading import base_optimizer, is_spread, named_parts
from ..team import largest, world_size
from ..tensor_memory import TensorMemory, attached_tensors, training_tensors
from .evaluation import ratio_with_error
from .loop import Session, Step, run_step


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Measure until the 95 % interval of tokens/s is within ± ``rel_halfwidth``, or a cap is reached."""

    rel_halfwidth: float = 0.05
    min_steps: int = 5
    max_steps: int = 40
    max_seconds: float = 6.0

    def is_met(self, steps: Sequence[Step]) -> bool:
        """Whether the steps so far suffice."""
        if len(steps) < self.min_steps:
            return False
        if len(steps) >= self.max_steps or sum(step.seconds for step in steps) >= self.max_seconds:
            return True
        speed = speed_of(steps)
        return speed.rel_halfwidth is not None and speed.rel_halfwidth <= self.rel_halfwidth


@dataclass(frozen=True, slots=True)
class Speed:
    """Throughput over a run of timed steps."""

    tokens_per_s: float
    rel_halfwidth: float | None
    samples_per_s: float
    step_s_mean: float
    step_s_std: float | None
    seconds: float
    steps: int


def speed_of(steps: Sequence[Step]) -> Speed:
    """Tokens and rows per second as ratios of sums; the interval by linearisation of that ratio."""
    seconds = [step.seconds for step in steps]
    rate, error = ratio_with_error([step.tokens for step in steps], seconds)
    return Speed(
        tokens_per_s=rate,
        rel_halfwidth=None if error is None or rate == 0 else student_t_975(len(steps) - 1) * error / rate,
        samples_per_s=sum(step.rows for step in steps) / sum(seconds),
        step_s_mean=statistics.fmean(seconds),
        step_s_std=statistics.stdev(seconds) if len(seconds) > 1 else None,
        seconds=sum(seconds),
        steps=len(steps),
    )


def student_t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: half the width of a two-sided 95 % interval, in standard errors.

    Cornish–Fisher expansion (Abramowitz & Stegun 26.7.5), within 0.3 % from 4 degrees of freedom up; below,
    the exact values.
    """
    exact = {1: 12.706, 2: 4.303, 3: 3.182}
    if degrees in exact:
        return exact[degrees]
    z, n = 1.959964, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def time_steps(steps: Iterator[Step], rule: StoppingRule) -> list[Step]:
    """Take steps until the rule is met. Warm-up is the caller's."""
    taken: list[Step] = []
    for step in steps:
        taken.append(step)
        if rule.is_met(taken):
            break
    return taken


def without_compiling(session: Session, steps: Iterator[Step]) -> Iterator[Step]:
    """Those of the steps in which no process compiled: new lengths of rows may ask for a new program."""
    if not session.candidate["level"]["compile"]:
        yield from steps
        return
    from torch._dynamo.utils import counters

    programs = counters["stats"]["unique_graphs"]
    for step in steps:
        before, programs = programs, counters["stats"]["unique_graphs"]
        if not largest(programs - before, session.device):
            yield step


def peak_tensor_bytes(session: Session, examples: Sequence[Example]) -> int | None:
    """Live tensor bytes at the peak of one untimed optimizer step (optimizer state already there).

    None for a compiled model, whose operations cannot be followed.
    """
    if session.candidate["level"]["compile"]:
        return None
    memory = TensorMemory()
    with memory:
        memory.follow(training_tensors(session.model, base_optimizer(session.optimizer)))
        if (tuner := session.tuner) is not None:
            memory.follow(rank_tensors(tuner))
        if is_spread(session.candidate["level"]):
            memory.follow(tensors_of_python())
        run_step(session, examples, 0)
    return memory.peak_bytes + reducer_bytes(session.model)


def tensors_of_python() -> Iterator[torch.Tensor]:
    """All tensors that Python knows of: DeepSpeed and FSDP keep some of their own, wherever they like."""
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not is_fake(thing):
            yield thing


def reducer_bytes(model: torch.nn.Module) -> int:
    """DDP's buckets, which hold a copy of every gradient where Python does not see it."""
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return 0
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


COLLECTIVES = ("gloo:", "nccl:")
"""How PyTorch's profiler names what processes say to each other, waiting included."""


def communication_share(session: Session, examples: Sequence[Example]) -> float | None:
    """Share of one more optimizer step in which this process talked to the others, or waited for them.

    Where computing goes on meanwhile, it counts all the same. None with one process.
    """
    if world_size() == 1:
        return None
    activities = [torch.profiler.ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        started_s = time.perf_counter()
        run_step(session, examples, 0)
        seconds = time.perf_counter() - started_s
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or []
        if event.name.startswith(COLLECTIVES)
    )
    return min(1.0, covered(spans) / 1e6 / seconds)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of what the spans cover together; they are sorted by their starts."""
    total, reached = 0.0, -math.inf
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters as this process stores them, scales of quantized blocks included."""
    parts = [part for _, _, part in named_parts(model)]
    scales = [tensor for parameter in model.parameters() for tensor in attached_tensors(parameter)]
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in (*parts, *scales)
    }
    return sum(storages.values())


class ProcessMemory:
    """Growth of this process's resident set over what it had when the watch began.

    A process forked from the warm server starts with the server's pages; they are not the trial's. The
    kernel's high-water mark is reset at the start (``clear_refs`` 5, Linux ≥ 4.0).
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._inherited_bytes = read_status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Highest resident set since the start, less the inherited part."""
        return max(0, read_status_bytes("VmHWM") - self._inherited_bytes)


def read_status_bytes(field: str) -> int:
    """A ``kB`` field of ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def cuda_peaks(device: torch.device) -> dict[str, Any]:
    """``peak_allocated_bytes`` and ``peak_reserved_bytes`` of CUDA's caching allocator; empty on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def finite_or_none(value: float | None) -> float | None:
    """None for NaN and infinity: a number that is none is not stored."""
    return value if value is not None and math.isfinite(value) else None
