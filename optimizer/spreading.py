"""Which devices a training may be spread over, and how many that takes.

Knows nothing of the ways to spread one, which :mod:`.levels` orders and :mod:`.rules` restrict.
"""

from __future__ import annotations

from ..probes.profiles import GpuProfile, HardwareProfile
from .domain import Level, StudyFacts, StudyRequest
from .keys import trial_device

FREE_SHARE = 0.9
"""A GPU with this share of its memory free is free: the driver and a desktop take some of it."""


def alike_gpus(hardware: HardwareProfile) -> tuple[GpuProfile, ...]:
    """Those that one training can be spread over, most free memory first.

    They are of the model and size of the one that trials run on. Instances of a device that MIG splits cannot
    reach one another, so that each stands alone. A device that says that it is unfit counts for nothing.
    """
    first = trial_device(hardware)
    if first is None:
        return ()
    if first.is_mig:
        return (first,)
    others = (
        gpu
        for gpu in hardware.gpus
        if gpu.uuid != first.uuid
        and (gpu.name, gpu.total_bytes, gpu.is_mig) == (first.name, first.total_bytes, False)
        and not gpu.health_problems
    )
    return (first, *sorted(others, key=lambda gpu: gpu.free_bytes or 0, reverse=True))


def processes_for(request: StudyRequest, hardware: HardwareProfile, effective_batch: int) -> int:
    """That trainings are spread over, beside single ones; 1 where none is.

    As many as were asked for; unasked, all free GPUs alike, or fewer that divide a step's rows evenly.
    """
    if request.processes is not None:
        is_possible = (
            request.processes <= most_processes(hardware) and effective_batch % request.processes == 0
        )
        return request.processes if is_possible else 1
    alike = alike_gpus(hardware)
    free = [gpu for gpu in alike if _is_free(gpu)]
    return next((count for count in range(len(free), 1, -1) if effective_batch % count == 0), 1)


def most_processes(hardware: HardwareProfile) -> int:
    """That one training can be spread over: GPUs alike, or a processor's cores where there is no GPU."""
    return len(alike_gpus(hardware)) or hardware.host.logical_cores


def devices_of(level: Level, facts: StudyFacts | None) -> int:
    """Devices that a training takes, and that are paid for: one a process. Without a GPU all share one."""
    return level.processes if facts is not None and facts.hardware.gpus else 1


def _is_free(gpu: GpuProfile) -> bool:
    """Nobody else has much of it; unknown counts as free."""
    return gpu.free_bytes is None or gpu.free_bytes >= FREE_SHARE * gpu.total_bytes
