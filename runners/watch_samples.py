"""What a sequence of samples says about others on the device of a trial. Pure.

A short blip is no disturbance: what counts is how much of the trial's time it took. Knows nothing of how
samples are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..probes.gpu_health import HARDWARE_SLOWDOWN, POWER_BRAKE, THERMAL
from ..probes.profiles import GpuProfile

NOTICEABLE_SHARE = 0.1
"""Of the trial's time or of its processors' time; less is no disturbance.

Tried with a small transformer trained by two threads on two cores: neighbours that took a tenth of the
processor time cost a tenth of the speed, which is how much undisturbed runs differed among themselves. Those
that took two fifths cost three quarters of it, since the threads wait for each other.
"""

NOTICEABLE_BYTES = 256 * 2**20
"""Less growth of foreign memory is no disturbance: the driver's own use moves by some MiB.

On current GPUs a program that computes takes more than this at once.
"""

WINDOW_S = 5.0

DISTORTING = {
    THERMAL: "because it was too hot",
    POWER_BRAKE: "by its power supply",
    HARDWARE_SLOWDOWN: "by its hardware protection",
}
"""Reasons that make a measured speed one of the moment.

A GPU at full load that keeps to its power limit is as fast as ever, and clocks that were set stay set.
"""

_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSample:
    """Processor time between two looks, in seconds of one core."""

    seconds: float
    """Between the looks."""
    own_s: float
    """Of the trial and of whoever watches it."""
    others_s: float
    stolen_s: float
    """Given to other virtual machines while this one wanted it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One look at the device. None is unknown."""

    seconds: float
    """Since the look before."""
    running: bool
    """The trial had a process."""
    own_bytes: int | None = None
    others_bytes: int | None = None
    """All that is used and not the trial's, whether or not NVML says by whom."""
    others: frozenset[int] | None = None
    """Foreign processes on the device."""
    others_compute: float | None = None
    """Share of the time in which foreign processes ran kernels; above 1 where several did."""
    throttle_reasons: tuple[str, ...] | None = None
    health_problems: tuple[str, ...] = ()


def gpu_sample(
    gpu: GpuProfile,
    trial_pids: Collection[int],
    *,
    running: bool,
    compute_shares: Mapping[int, float] | None,
    seconds: float,
) -> GpuSample:
    """Tell the trial's processes and others apart.

    A running trial that is not on the driver's list has not begun to use the device, or the list has other
    process ids than ours, as inside some containers. Then nobody on the list is known to be foreign.

    Args:
        gpu: the device now.
        trial_pids: all processes that the trial has had: the driver may list one that has just ended.
        running: the trial has a process now.
        compute_shares: share of the time in which processes ran kernels.
        seconds: since the look before.
    """
    listed = {process.pid: process.used_bytes for process in gpu.processes or ()}
    own = [used_bytes for pid, used_bytes in listed.items() if pid in trial_pids]
    tells_all = bool(own) or not running
    own_bytes: int | None = None
    if tells_all and None not in own:
        own_bytes = sum(used_bytes or 0 for used_bytes in own)
    others_compute: float | None = None
    if own and compute_shares is not None:
        others_compute = sum(share for pid, share in compute_shares.items() if pid not in trial_pids)
    return GpuSample(
        seconds=seconds,
        running=running,
        own_bytes=own_bytes,
        others_bytes=None if own_bytes is None or gpu.used_bytes is None else gpu.used_bytes - own_bytes,
        others=frozenset(listed.keys() - set(trial_pids))
        if tells_all and gpu.processes is not None
        else None,
        others_compute=others_compute,
        throttle_reasons=gpu.throttle_reasons,
        health_problems=gpu.health_problems,
    )


def judge_cpu(samples: Sequence[CpuSample], cores: float) -> tuple[str, ...]:
    """Sentences on who took processor time from the trial; none when nobody did to speak of.

    Args:
        samples: those during which the trial ran.
        cores: physical ones that it may use. Two hardware threads of a core do hardly more than one.
    """
    taken = [(sample.seconds, taken_s(sample, cores)) for sample in samples]
    total_s = sum(amount for _, amount in taken)
    wanted_s = total_s + sum(sample.own_s for sample in samples)
    if not total_s or total_s < NOTICEABLE_SHARE * wanted_s:
        return ()
    stolen_s = sum(sample.stolen_s for sample in samples)
    who = "virtual machines" if stolen_s > total_s / 2 else "programs"
    return (
        f"Other {who} took {total_s / wanted_s:.0%} of the processor time that the trial had use for, "
        f"{worst_rate(taken):.1f} of {cores:g} cores in its worst {WINDOW_S:g} s.",
    )


def taken_s(sample: CpuSample, cores: float) -> float:
    """Core seconds that the trial can have missed: the foreign load that would not have fit on idle cores."""
    idle_s = max(0.0, cores * sample.seconds - sample.own_s - sample.others_s - sample.stolen_s)
    return sample.stolen_s + max(0.0, sample.others_s - idle_s)


def judge_gpu(samples: Sequence[GpuSample]) -> tuple[str, ...]:
    """Sentences on who or what disturbed the trial; none when nothing did.

    Args:
        samples: the first from before the trial's start, to compare with.
    """
    running = [sample for sample in samples if sample.running]
    return (*_memory(samples), *_compute(running), *_slowdowns(running), *_health(samples))


def _memory(samples: Sequence[GpuSample]) -> Iterator[str]:
    """Processes that came, and memory that others took on top of what they had."""
    used = [(sample, sample.others_bytes) for sample in samples if sample.others_bytes is not None]
    growth = [(sample, others_bytes - used[0][1]) for sample, others_bytes in used[1:]]
    grew = _lasts([(sample, grown_bytes >= NOTICEABLE_BYTES) for sample, grown_bytes in growth])
    most = f"{max((grown_bytes for _, grown_bytes in growth), default=0) / _GIB:.1f} GiB"
    lists = [(sample, sample.others) for sample in samples if sample.others is not None]
    news = [(sample, others - lists[0][1]) for sample, others in lists[1:]]
    seen = sorted({pid for _, pids in news for pid in pids})
    came = [str(pid) for pid in seen if _lasts([(sample, pid in pids) for sample, pids in news])]
    if came:
        who = f"Process {came[0]}" if len(came) == 1 else f"Processes {', '.join(came)}"
        yield f"{who} came onto the GPU" + (
            f"; others took up to {most} more of its memory." if grew else "."
        )
    elif grew:
        yield f"Others took up to {most} more of the GPU's memory than before the trial."


def _lasts(states: Sequence[tuple[GpuSample, bool]]) -> bool:
    """Whether a state took a noticeable share of the time, or the trial ended in it.

    A trial may have ended because of it: for want of memory.
    """
    if not states:
        return False
    seconds = sum(sample.seconds for sample, _ in states)
    held_s = sum(sample.seconds for sample, holds in states if holds)
    return states[-1][1] or (held_s > 0 and held_s >= NOTICEABLE_SHARE * seconds)


def _compute(running: Sequence[GpuSample]) -> Iterator[str]:
    """Kernels of other processes."""
    busy = [
        (sample.seconds, sample.others_compute * sample.seconds)
        for sample in running
        if sample.others_compute is not None
    ]
    share = _mean_rate(busy)
    if share >= NOTICEABLE_SHARE:
        worst = f"{worst_rate(busy):.0%} in its worst {WINDOW_S:g} s"
        yield f"Other processes kept the GPU busy for {share:.0%} of the trial's time, {worst}."


def _slowdowns(running: Sequence[GpuSample]) -> Iterator[str]:
    """Clocks held down for a reason of the moment."""
    for reason, cause in DISTORTING.items():
        share = _mean_rate(
            [
                (sample.seconds, sample.seconds if reason in sample.throttle_reasons else 0.0)
                for sample in running
                if sample.throttle_reasons is not None
            ]
        )
        if share >= NOTICEABLE_SHARE:
            yield f"The GPU was slowed down {cause} for {share:.0%} of the trial's time."


def _health(samples: Sequence[GpuSample]) -> Iterator[str]:
    """What came to be wrong with the device; such things stay until it is reset."""
    found = next((sample.health_problems for sample in reversed(samples) if sample.health_problems), ())
    for problem in found:
        if problem not in samples[0].health_problems:
            yield f"The GPU is no longer fit for measurements: {problem}."


def _mean_rate(amounts: Sequence[tuple[float, float]]) -> float:
    """Amount a second over pairs of (seconds, amount); 0 without any."""
    seconds = sum(elapsed_s for elapsed_s, _ in amounts)
    return sum(amount for _, amount in amounts) / seconds if seconds else 0.0


def worst_rate(amounts: Sequence[tuple[float, float]]) -> float:
    """The highest amount a second over neighbouring pairs of (seconds, amount) that span a window.

    Over all of them where they span less.
    """
    worst = 0.0
    start, seconds, total = 0, 0.0, 0.0
    for elapsed_s, amount in amounts:
        seconds += elapsed_s
        total += amount
        while seconds - amounts[start][0] >= WINDOW_S:
            seconds -= amounts[start][0]
            total -= amounts[start][1]
            start += 1
        if seconds >= WINDOW_S:
            worst = max(worst, total / seconds)
    return worst if seconds >= WINDOW_S else _mean_rate(amounts)
