"""What a training asks of a scheduler: devices, their memory, the node's, and time, from what was measured.

The one place that adds margins: job files, documents and lines for shells all take these figures. Knows no
scheduler.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..probes.profiles import HardwareProfile
from .domain import Candidate, Finish, Measurement, Recommendation, Study
from .estimates.gpus import CATALOGUE
from .recipe import steps_for
from .scorer import finish_of

GIB = 2**30
GPU_MARGIN = 1.05
"""Times the measured peak: how an allocator cuts memory up differs a little from run to run."""
HOST_RESERVE_BYTES = 4 * GIB
"""For Python, its libraries and the data, over what a trial was seen to take."""
UNKNOWN_HOST_BYTES = 16 * GIB
TIME_RESERVE = 1.5
"""Times the measured duration: evaluation, saving, a slower node."""
UNKNOWN_TIME_S = 24 * 3600
START_S = 900
"""For installing, loading and reading."""
CORES_PER_GPU = 8
"""Enough to feed a GPU from prepared rows; a node's other cores are for its other jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """How long a training takes at the measured speed, evaluation and saving not counted."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What to ask for, margins included."""

    gpus: int
    """On one node; 0 where a CPU was measured."""
    gpu_name: str | None = None
    """That was measured on; other devices are as fast or slow as they are."""
    gpu_bytes: int | None = None
    """Of each GPU; null without one, or where nothing was measured."""
    gpu_card_gb: int | None = None
    """The same as a size that cards are sold with; null too where none is large enough."""
    cpus: int
    host_bytes: int
    """16 GiB where nothing was measured."""
    hours: Hours | None = None
    """For all epochs that were asked for; null where the speed is not known."""
    limit_s: int
    """Time limit to ask for: with what starting, evaluating and saving take. A day where nothing is known."""


def asked_for(study: Study, recommendation: Recommendation) -> Resources | None:
    """What the recommended training asks of a scheduler; None of a study without facts."""
    facts = study.facts
    if facts is None:
        return None
    return resources_of(
        recommendation.candidate,
        recommendation.evidence,
        total_steps=steps_for(facts.train_rows, facts.recipe),
        hardware=facts.hardware,
    )


def resources_of(
    candidate: Candidate, measured: Measurement | None, *, total_steps: int, hardware: HardwareProfile
) -> Resources:
    """What the whole training asks for.

    Args:
        candidate: that is trained.
        measured: of it; None where it never ran.
        total_steps: of the whole training.
        hardware: that was measured on.
    """
    gpus, cores = candidate.level.processes if hardware.gpus else 0, hardware.host.usable_cores
    measured = measured or Measurement()
    finish = finish_of(measured, total_steps, None)
    gpu_bytes = _gpu_bytes(measured) if gpus else None
    host_bytes = measured.peak_process_bytes
    return Resources(
        gpus=gpus,
        gpu_name=hardware.gpus[0].name if gpus else None,
        gpu_bytes=gpu_bytes,
        gpu_card_gb=None if gpu_bytes is None else card_gb(gpu_bytes),
        cpus=min(cores, CORES_PER_GPU * gpus) if gpus else cores,
        host_bytes=UNKNOWN_HOST_BYTES if host_bytes is None else host_bytes + HOST_RESERVE_BYTES,
        hours=None if finish is None else _hours(finish),
        limit_s=math.ceil(finish.high_s * TIME_RESERVE) + START_S if finish else UNKNOWN_TIME_S,
    )


def _hours(finish: Finish) -> Hours:
    return Hours(low=finish.low_s / 3600, mid=finish.seconds / 3600, high=finish.high_s / 3600)


def _gpu_bytes(measured: Measurement) -> int | None:
    """The peak as the driver shows it, else as torch does, with the margin."""
    peak = measured.peak_reserved_bytes if measured.peak_device_bytes is None else measured.peak_device_bytes
    return None if peak is None else math.ceil(peak * GPU_MARGIN)


def card_gb(needed_bytes: int) -> int | None:
    """The smallest size on the box of which every card of the catalogue has so much for programs."""
    return next((size for size, least_bytes in CARDS if least_bytes >= needed_bytes), None)


def _cards() -> tuple[tuple[int, int], ...]:
    """Size on the box → the least that a driver leaves programs of it, of NVIDIA's devices."""
    least: dict[int, int] = {}
    for gpu in CATALOGUE:
        size = re.search(r"(\d+)GB$", gpu.name)
        if size and gpu.compute_capability is not None:
            key = int(size[1])
            least[key] = min(least.get(key, gpu.memory_bytes), gpu.memory_bytes)
    return tuple(sorted(least.items()))


CARDS = _cards()


def flat(resources: Resources) -> dict[str, Any]:
    """One level of names, for formats that have no more; sizes in GiB beside bytes are rounded up."""
    hours = resources.hours
    return {
        "gpus": resources.gpus,
        "gpu_name": resources.gpu_name,
        "gpu_bytes": resources.gpu_bytes,
        "gpu_gib": None if resources.gpu_bytes is None else math.ceil(resources.gpu_bytes / GIB),
        "gpu_card_gb": resources.gpu_card_gb,
        "cpus": resources.cpus,
        "host_bytes": resources.host_bytes,
        "host_gib": math.ceil(resources.host_bytes / GIB),
        "hours": hours and hours.mid,
        "hours_low": hours and hours.low,
        "hours_high": hours and hours.high,
        "limit_seconds": resources.limit_s,
        "limit_minutes": math.ceil(resources.limit_s / 60),
    }
