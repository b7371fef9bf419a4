"""One attempt at one trial, from its launch to how it ended: what it says, its lease, its devices.

It is tended by whoever runs it, again and again, so that several can run beside each other in one thread.
Knows nothing of what runs beside it, and writes nothing but signs of life into the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..optimizer.domain import Trial
from ..probes.gpu import read_again
from ..probes.profiles import GpuProfile
from ..store import HEARTBEAT_S, Claim, Store
from .classify import Ending, classify
from .device_care import DeviceCare
from .guard import Limits
from .messages import JUDGING, TrialSpec
from .warm_client import Job, WarmServer, read_tail
from .watch import DeviceWatch

SAMPLE_S = 0.5
DRAIN_S = 30.0


@dataclass(kw_only=True)
class Attempt:
    """A claimed trial on devices of its own. Made by :meth:`launch`."""

    store: Store
    care: DeviceCare
    claim: Claim
    devices: Sequence[GpuProfile]
    """None means the CPU."""
    watch: DeviceWatch
    job: Job
    before: Sequence[GpuProfile]
    """The devices as they were just before the launch."""
    oom_kills_before: int
    started_s: float
    _next_heartbeat_s: float = field(default_factory=time.monotonic)
    _next_sample_s: float = field(default_factory=time.monotonic)

    @classmethod
    def launch(
        cls,
        server: WarmServer,
        spec: TrialSpec,
        *,
        store: Store,
        care: DeviceCare,
        claim: Claim,
        devices: Sequence[GpuProfile],
        folder: Path,
        limits: Limits,
        logical_cores: int,
    ) -> Attempt:
        """Start a claimed trial.

        Raises:
            Killed: the server is gone.
        """
        started_s, oom_kills = time.monotonic(), kernel_oom_kills()
        watch = DeviceWatch(devices, logical_cores=logical_cores)
        before = [read_again(device) for device in devices]
        return cls(
            store=store,
            care=care,
            claim=claim,
            devices=devices,
            watch=watch,
            job=server.start("trial", spec.to_mapping(), folder, limits),
            before=before,
            oom_kills_before=oom_kills,
            started_s=started_s,
        )

    @property
    def trial(self) -> Trial:
        """As it was when it was claimed."""
        return self.claim.trial

    @property
    def is_over(self) -> bool:
        """Nothing of it runs any more."""
        return self.job.closed

    def tend(self, timeout_s: float) -> None:
        """Hear what it says, for at most so long; then keep its lease and look at its devices if it is time.

        Raises:
            StaleFence: the lease was over: somebody has ended the attempt.
        """
        if not self.is_over:
            for _ in self.job.poll(timeout_s):
                pass  # kept by the job
        now_s = time.monotonic()
        if now_s >= self._next_heartbeat_s:
            self._next_heartbeat_s = now_s + HEARTBEAT_S
            self.store.heartbeat(self.claim)
        if now_s >= self._next_sample_s and not self.is_over and not is_judged(self.job):
            self._next_sample_s = now_s + SAMPLE_S
            self.watch.sample(trial_pids(self.job))

    def stop(self) -> None:
        """End what still runs of it."""
        drop(self.job)

    def settle(self, meanwhile: Callable[[], object]) -> None:
        """See to it that the devices of an attempt that is over are as they were, or not used again.

        Args:
            meanwhile: called again and again while the driver gives memory back.
        """
        self.watch.sample(())  # what others hold, now that the trial is gone
        if self.before:
            self.care.settle(self.before, self.watch.pids, meanwhile)

    @property
    def ending(self) -> Ending:
        """How it ended, whoever may have disturbed it."""
        return classify(
            result=with_device_peak(self.job.last("result"), self.watch.peak_bytes),
            failure=self.job.last("failure"),
            error=self.job.last("error"),
            end=self.job.last("exit"),
            kernel_oom_kills=kernel_oom_kills() - self.oom_kills_before,
            log_tail=self.log_tail,
        )

    @property
    def log_tail(self) -> str:
        """The end of its log."""
        return read_tail(self.job.log_path)

    @property
    def wall_s(self) -> float:
        """Since the launch."""
        return time.monotonic() - self.started_s


def drop(job: Job) -> None:
    """End a job that has not ended yet."""
    if not job.closed:
        job.cancel()
        job.wait(DRAIN_S)


def is_judged(job: Job) -> bool:
    """The trial has measured all, and the user's command runs."""
    return (job.last("progress") or {}).get("phase") == JUDGING


def trial_pids(job: Job) -> list[int]:
    """The trial's process and all below it; none before it has said who it is, or once it is gone."""
    started = job.last("started")
    with suppress(psutil.NoSuchProcess):
        if started:
            children = psutil.Process(started["pid"]).children(recursive=True)
            return [started["pid"], *(child.pid for child in children)]
    return []


def with_device_peak(result: Mapping[str, Any] | None, peak_bytes: int | None) -> dict[str, Any] | None:
    """The result with the peak that only an outside observer can see."""
    if result is None:
        return None
    if peak_bytes is None:
        return dict(result)
    return {**result, "measurement": {**result["measurement"], "peak_device_bytes": peak_bytes}}


def kernel_oom_kills() -> int:
    """Processes that the kernel's OOM killer has taken since boot; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
