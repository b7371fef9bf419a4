"""Watches the devices of a trial while it runs, to tell what others did on it.

Others are only looked at, never touched. Knows nothing of what becomes of a disturbed trial.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import psutil

from ..probes.cpu_time import cpu_time, own_time, processes_time
from ..probes.gpu import compute_shares, read_again
from ..probes.profiles import GpuProfile
from .watch_samples import CpuSample, GpuSample, gpu_sample, judge_cpu, judge_gpu

UTILISATION_PERIOD_S = 1.0
"""NVML averages utilisation over up to this time."""


class DeviceWatch:
    """Notices what others do on the device of a trial while it runs.

    Made before the trial starts, since what was there before is no disturbance. A last sample without
    processes, after the trial, shows what others hold where NVML does not list processes.
    """

    def __init__(self, devices: Sequence[GpuProfile], *, logical_cores: int) -> None:
        """Take a first look.

        Args:
            devices: the trial's GPUs; none means the CPU.
            logical_cores: that the trial may use.
        """
        self._pids: set[int] = set()
        gpus = [GpuWatch(device) for device in devices]
        self._watches: Sequence[GpuWatch | CpuWatch] = gpus or [CpuWatch(logical_cores)]

    @property
    def pids(self) -> frozenset[int]:
        """All processes that the trial has been seen to have."""
        return frozenset(self._pids)

    def sample(self, pids: Collection[int]) -> None:
        """Look again, about every half second.

        Args:
            pids: the trial's process and all below it; none before it starts and after it has ended.
        """
        self._pids |= set(pids)
        for watch in self._watches:
            watch.sample(pids)

    @property
    def peak_bytes(self) -> int | None:
        """Device memory of the trial's processes at its highest, on the device where they held most.

        None on the CPU and where NVML does not say.
        """
        known = [watch.peak_bytes for watch in self._watches if watch.peak_bytes is not None]
        return max(known, default=None)

    @property
    def disturbances(self) -> tuple[str, ...]:
        """A sentence on each thing that distorted speed or memory; () if nothing did."""
        told = (sentence for watch in self._watches for sentence in watch.disturbances)
        return tuple(dict.fromkeys(told))


class CpuWatch:
    """Others' processor time while a trial runs on the CPU."""

    peak_bytes: int | None = None

    def __init__(self, logical_cores: int) -> None:
        physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
        self._cores = logical_cores * (physical / logical if physical and logical else 1.0)
        self._samples: list[CpuSample] = []
        self._look(())

    def sample(self, pids: Collection[int]) -> None:
        """Keep the time since the last look, if the trial ran all the while."""
        at_s, machine, watch_s, trial_s = self._at_s, self._machine, self._watch_s, self._trial_s
        self._look(pids)
        # The sum shrinks when a process ends that nobody waited for: what it did is not known then.
        if trial_s is None or self._trial_s is None or self._trial_s < trial_s:
            return
        own_s = self._trial_s - trial_s + self._watch_s - watch_s
        self._samples.append(
            CpuSample(
                seconds=self._at_s - at_s,
                own_s=own_s,
                # The kernel counts the machine's time and a process's in different steps.
                others_s=max(0.0, self._machine.busy_s - machine.busy_s - own_s),
                stolen_s=max(0.0, self._machine.stolen_s - machine.stolen_s),
            )
        )

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Whether others took the trial's cores."""
        return judge_cpu(self._samples, self._cores)

    def _look(self, pids: Collection[int]) -> None:
        self._at_s = time.monotonic()
        self._machine = cpu_time()
        self._watch_s = own_time()
        self._trial_s = processes_time(pids)


class GpuWatch:
    """What NVML tells about a device while a trial runs on it."""

    def __init__(self, device: GpuProfile) -> None:
        self._device = device
        self._at_s = time.monotonic()
        self._samples: list[GpuSample] = []
        self._trial_pids: set[int] = set()
        self.sample(())

    def sample(self, pids: Collection[int]) -> None:
        """Keep what is seen now."""
        now_s = time.monotonic()
        seconds, self._at_s = now_s - self._at_s, now_s
        gpu = read_again(self._device)
        shares = compute_shares(gpu, time.time() - max(seconds, UTILISATION_PERIOD_S)) if pids else None
        self._trial_pids |= set(pids)
        self._samples.append(
            gpu_sample(gpu, self._trial_pids, running=bool(pids), compute_shares=shares, seconds=seconds)
        )

    @property
    def peak_bytes(self) -> int | None:
        """Device memory of the trial's processes at its highest."""
        known = [
            sample.own_bytes for sample in self._samples if sample.running and sample.own_bytes is not None
        ]
        return max(known, default=None)

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Who and what disturbed the trial."""
        return judge_gpu(self._samples)
