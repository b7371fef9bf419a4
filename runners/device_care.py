"""Whether a study's devices can be used now, and whether a trial left them as it found them.

Whoever else uses a device is waited for, never touched. A device that does not get its memory back, or that
the driver calls unfit, goes into quarantine, and comes out of it when it is well again, or when somebody says
so. Knows nothing of what a trial does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..probes.gpu import read_again
from ..probes.profiles import GpuProfile
from ..store import Quarantine, QuarantineCause, Store
from .watch_samples import NOTICEABLE_BYTES

RETURN_S = 10.0
"""Within it the driver gives a dead process's memory back; large allocations take a second or two."""
POLL_S = 0.25

_GIB = 2**30

Tell = Callable[[str, Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCare:
    """Looks at devices for one study."""

    store: Store
    tell: Tell
    """Appends an event to the study's history."""

    def hindrance(self, gpus: Sequence[GpuProfile]) -> str | None:
        """Why no trial can start on these devices now, in a sentence; None if one can.

        Args:
            gpus: as the study found them when it began: it reckons with the memory that was free then.
        """
        if not gpus:
            return None
        leased = self.store.leased_devices([gpu.uuid for gpu in gpus])
        known = {each.device: each for each in self.store.list_quarantines(with_released=True)}
        for gpu in gpus:
            if gpu.uuid in leased:
                continue  # what it holds now is a trial's
            now = read_again(gpu)
            quarantine = self._still_valid(now, known.get(gpu.uuid))
            if quarantine is None or quarantine.released:
                quarantine = self._judge_health(now) or quarantine
            if quarantine is None:
                why = busy(gpu, now)
            else:  # who has released a device knows what its memory holds
                why = None if quarantine.released else unfit(now, quarantine)
            if why is not None:
                return why
        return None

    def settle(self, before: Sequence[GpuProfile], pids: Collection[int], wait: Callable[[], object]) -> None:
        """See what a trial that is over has left on its devices; they are quarantined if it is too much.

        Args:
            before: the devices as they were just before the trial.
            pids: of the trial's processes, all of which are gone.
            wait: called while memory is waited for.
        """
        deadline_s = time.monotonic() + RETURN_S
        waiting = list(before)
        while True:
            now = {gpu.uuid: read_again(gpu) for gpu in waiting}
            missing = {gpu.uuid: missing_bytes(gpu, now[gpu.uuid], pids) for gpu in waiting}
            waiting = [gpu for gpu in waiting if missing[gpu.uuid] >= NOTICEABLE_BYTES]
            for profile in now.values():
                self._judge_health(profile)
            if not waiting:
                return
            if time.monotonic() > deadline_s:
                break
            wait()
            time.sleep(POLL_S)
        for gpu in waiting:
            reason = (
                f"{missing[gpu.uuid] / _GIB:.1f} GiB of its memory did not come back within "
                f"{RETURN_S:.0f} s after a trial"
            )
            self._quarantine(gpu, QuarantineCause.MEMORY, reason, baseline_bytes=gpu.used_bytes)

    def _still_valid(self, now: GpuProfile, quarantine: Quarantine | None) -> Quarantine | None:
        """A device's quarantine, unless it is well again: then it ends."""
        if quarantine is None or not is_well(now, quarantine):
            return quarantine
        self.store.lift_quarantine(now.uuid)
        if not quarantine.released:
            self.tell("device.released", {"device": now.uuid, "reason": "it is well again"})
        return None

    def _judge_health(self, now: GpuProfile) -> Quarantine | None:
        """Quarantine what the driver calls unfit; None for a device that may be used."""
        if not now.health_problems:
            return None
        self._quarantine(now, QuarantineCause.HEALTH, "; ".join(now.health_problems))
        return next((each for each in self.store.list_quarantines() if each.device == now.uuid), None)

    def _quarantine(
        self, gpu: GpuProfile, cause: QuarantineCause, reason: str, *, baseline_bytes: int | None = None
    ) -> None:
        if self.store.quarantine_device(gpu.uuid, cause, reason, baseline_bytes=baseline_bytes):
            self.tell("device.quarantined", {"device": gpu.uuid, "cause": cause.value, "reason": reason})


def unfit(now: GpuProfile, quarantine: Quarantine) -> str:
    """Why a device in quarantine is not used, and how it can be."""
    return (
        f"GPU {now.index} ({now.uuid}) is in quarantine: {quarantine.reason}; "
        f"use it in spite of that with: rankwise devices release {now.uuid}"
    )


def busy(then: GpuProfile, now: GpuProfile) -> str | None:
    """Who has taken memory that a study reckons with, in a sentence; None if nobody has to speak of."""
    if then.used_bytes is None or now.used_bytes is None:
        return None
    taken_bytes = now.used_bytes - then.used_bytes
    if taken_bytes < NOTICEABLE_BYTES:
        return None
    known = {process.pid for process in then.processes or ()}
    came = [str(process.pid) for process in now.processes or () if process.pid not in known]
    who = f"process {came[0]}" if len(came) == 1 else f"processes {', '.join(came)}" if came else "others"
    return (
        f"{who} took {taken_bytes / _GIB:.1f} GiB of GPU {now.index} ({now.uuid}) since the study began; "
        "trials go on when it is free again"
    )


def missing_bytes(before: GpuProfile, now: GpuProfile, pids: Collection[int]) -> int:
    """How much more is in use than before a trial, less what belongs to processes that were not its own."""
    if before.used_bytes is None or now.used_bytes is None:
        return 0
    had = {process.pid: process.used_bytes or 0 for process in before.processes or ()}
    others = [process for process in now.processes or () if process.pid not in pids]
    if any(process.used_bytes is None for process in others if process.pid not in had):
        return 0  # somebody came, and nobody can tell how much of it is theirs
    theirs = sum(max(0, (process.used_bytes or 0) - had.get(process.pid, 0)) for process in others)
    return now.used_bytes - before.used_bytes - theirs


def is_well(now: GpuProfile, quarantine: Quarantine) -> bool:
    """What a device was quarantined for is over; one that cannot be looked at is not well."""
    if now.used_bytes is None or now.health_problems:
        return False
    if quarantine.cause is QuarantineCause.HEALTH:
        return True
    return now.used_bytes < (quarantine.baseline_bytes or 0) + NOTICEABLE_BYTES
