"""Processor time since boot: the machine's, as far as this process may use it, and that of processes.

Knows nothing of what the time is compared with.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

STAT = Path("/proc/stat")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CpuTime(NamedTuple):
    """Seconds since boot, summed over the processors that this process may run on."""

    busy_s: float
    """Of all programs and the kernel; neither idle nor waiting for disks."""
    stolen_s: float
    """Wanted by this machine and given to others by its hypervisor; not in ``busy_s``."""


def cpu_time(stat: Path = STAT, processors: Collection[int] | None = None) -> CpuTime:
    """Read the machine's processor time. ``processors`` are numbers; None means those of this process."""
    usable = {f"cpu{number}" for number in processors or os.sched_getaffinity(0)}
    busy = stolen = 0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name in usable:
            # proc_stat(5); the times of guests are part of the first two.
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return CpuTime(busy / _TICKS_PER_S, stolen / _TICKS_PER_S)


def own_time() -> float:
    """Seconds of processor time of this process, without its children."""
    times = psutil.Process().cpu_times()
    return times.user + times.system


def processes_time(pids: Collection[int]) -> float | None:
    """Seconds of processor time of these processes and of those children that they have waited for.

    A child's time passes to its parent when that waits for it, so a list of all processes of a tree gives
    a sum that grows steadily while they come and go. None when none of them is there.
    """
    found = [times for pid in pids if (times := _times(pid)) is not None]
    if not found:
        return None
    return sum(times.user + times.system + times.children_user + times.children_system for times in found)


def _times(pid: int) -> Any:
    """psutil's times of a process, None for one that is gone."""
    try:
        return psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
