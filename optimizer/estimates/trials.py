"""Estimates of trials: from a dry run to a verdict on the device that trials run on, and back from what they
measured to how far estimates can be trusted there.

Knows nothing of how a dry run is made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from ...errors import InputError
from ..domain import (
    Candidate,
    Estimate,
    Level,
    Measurement,
    Method,
    Outcome,
    StudyFacts,
    StudyRequest,
    Trial,
)
from ..keys import trial_device
from ..sizes import BYTES_PER_ELEMENT, device_bytes, estimated_trainable
from .allocator import SMALL_SEGMENT_BYTES
from .calibration import ALLOCATED, RESERVED
from .estimate import Target, fits, memory_of, speed_of
from .gpus import Gpu, find_gpu
from .intervals import Factors, Fits, conformal_factors, least_residuals, log_ratios
from .overheads import TRAINING_THREADS, context_bytes, cublas_workspace_bytes
from .prediction import Terms, TrialPrediction
from .shard_plan import plan_of
from .sharding import unfilled_bytes
from .speed import START, Efficiency, efficiency_from
from .speed import Work as StepWork
from .tape import Phase

STEP_PHASES = (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
"""In which a trial counts live tensors."""

SURE_SHARE = 0.97
"""Of the tensors that a CPU's process holds at least: pages that nothing was written to take no memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What measurements on a device say of estimates for it."""

    allocated: Factors = ALLOCATED
    reserved: Factors = RESERVED
    efficiency: Efficiency = START
    host_overheads: tuple[int, ...] = ()
    """Bytes that each process on this CPU held beside its tensors: libraries, threads, unused memory."""
    trials: int = 0
    """That were measured and that it rests on …"""
    out_of_memory: int = 0
    """… and that ran out of memory although they had been told to fit."""


def learnt_from(trials: Sequence[Trial], gpu: Gpu | None) -> Learnt:
    """From probes on one device of which something had been told before.

    From 19 on (``intervals.least_residuals``) they set the intervals by themselves; fewer only widen them.
    Of disturbed ones only what the process held on the host counts: others on the machine do not change that.
    One that ran out of memory needed more than there was: where it had been told to need less, that counts as
    an estimate that was too low, by that much at least and no less than the worst that was measured.

    Args:
        trials: those that ended well, and those that ran out of memory.
        gpu: the device's entry in the catalogue; None leaves speed as it is.
    """
    failed = [trial for trial in trials if trial.outcome is Outcome.OOM]
    every = [
        (trial.estimate, trial.measurement, trial.candidate)
        for trial in trials
        if trial.estimate and trial.measurement and trial.outcome is not Outcome.OOM
    ]
    pairs = [(told, measured) for told, measured, _ in every if not measured.disturbances]
    allocated = [(e.peak_allocated_bytes, m.peak_allocated_bytes) for e, m in pairs]
    reserved = [(e.peak_reserved_bytes, m.peak_reserved_bytes) for e, m in pairs]
    steps = [
        (_step_work(estimate), estimate.step_tokens / measured.speed)
        for estimate, measured, candidate in every
        # What several processes take is computing and talking: it says little of either.
        if estimate.tokens_per_s
        and measured.speed
        and not measured.disturbances
        and not candidate.level.sharding
    ]
    overheads = [
        overhead
        for estimate, measured, candidate in every
        if estimate.peak_tensor_bytes and (overhead := _host_overhead(measured, candidate)) is not None
    ]
    too_low = [ratio for trial in failed if (ratio := _too_low_by(trial, gpu)) is not None]
    beyond = [excess for trial in failed if (excess := _overhead_beyond(trial)) is not None]
    return Learnt(
        allocated=_adjusted(ALLOCATED, allocated),
        reserved=_adjusted(RESERVED, reserved, at_least=too_low),
        efficiency=START if gpu is None else efficiency_from(steps, gpu),
        host_overheads=(*overheads, *(max([excess, *overheads]) for excess in beyond)),
        trials=len(pairs),
        out_of_memory=len(too_low) + len(beyond),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Says what dry runs mean on the device that a study's trials run on."""

    facts: StudyFacts
    request: StudyRequest
    learnt: Learnt = Learnt()

    @classmethod
    def of(
        cls, facts: StudyFacts, request: StudyRequest, trials_on: Callable[[str], Sequence[Trial]]
    ) -> Judge:
        """One that has learnt from trials; ``trials_on`` gives those of a device by its name."""
        judge = cls(facts=facts, request=request)
        return replace(judge, learnt=learnt_from(trials_on(judge.device_name), judge.gpu))

    @property
    def gpu(self) -> Gpu | None:
        """The trials' device, if it is a GPU of the catalogue."""
        device = trial_device(self.facts.hardware)
        return None if device is None else _in_catalogue(device.name)

    @property
    def device_name(self) -> str:
        """Under which name estimates for the device are kept."""
        device, host = trial_device(self.facts.hardware), self.facts.hardware.host
        return self.gpu.name if self.gpu else device.name if device else host.cpu_model or host.platform

    @property
    def terms(self) -> Terms:
        """What a dry run is told of the device."""
        if trial_device(self.facts.hardware) is None:
            return Terms()
        capability = None if self.gpu is None else self.gpu.compute_capability
        return Terms(workspaces=(cublas_workspace_bytes(capability),) * TRAINING_THREADS)

    def target_for(self, level: Level) -> Target | None:
        """What each GPU offers a level now; None where trials run on a CPU."""
        device = trial_device(self.facts.hardware)
        if device is None:
            return None
        limits = (self.request.memory_limit_bytes, device.free_bytes or device.total_bytes)
        return Target(
            gpu=self.gpu,
            limit_bytes=min(filter(None, limits), default=None),
            gpus=level.processes,
            efficiency=self.learnt.efficiency,
            factors=(self.learnt.allocated, self.learnt.reserved),
        )

    def enough_bytes(self, candidate: Candidate) -> int:
        """Bytes that a rank's tensors may take before it can be said that a candidate does not fit."""
        target = self.target_for(candidate.level)
        if target is not None:
            return target.limit_at_least_bytes
        share = self._host_bytes / SURE_SHARE / candidate.level.processes
        beyond = share - min(self.learnt.host_overheads, default=0)
        return max(0, int(beyond)) + self._untouched_bytes(candidate)

    def estimate(self, prediction: TrialPrediction, candidate: Candidate) -> Estimate:
        """What is told of a candidate."""
        work, ranks = prediction.work, candidate.level.processes
        offloaded = prediction.host_bytes or None
        told = Estimate(
            device=self.device_name,
            rank_host_bytes=offloaded,
            host_bytes=offloaded and ranks * offloaded,
            flops=dict(work.flops),
            moved_bytes=work.moved_bytes,
            kernels=work.kernels,
            communication_bytes=prediction.traffic.between_ranks + prediction.traffic.with_host,
            step_tokens=ranks * prediction.step_tokens,
            unit="samples" if self.facts.dataset.task.kind.reads_arrays else "tokens",
            seconds=prediction.seconds,
        )
        target = self.target_for(candidate.level)
        if target is None:
            told = replace(told, capacity_bytes=self._host_bytes)
            return self._on_host(told, prediction, candidate)
        told = replace(told, capacity_bytes=target.capacity_bytes)
        return self._beside_host(_on_gpu(told, prediction, target))

    def _on_host(self, told: Estimate, prediction: TrialPrediction, candidate: Candidate) -> Estimate:
        """On a CPU the tensors are known exactly. A process holds at least those that are written to, and
        what every process that was measured on this CPU held beside them; all share the host's memory."""
        ranks = candidate.level.processes
        tensors = max(prediction.need.by_phase[phase] for phase in STEP_PHASES) + prediction.host_bytes
        beside = self.learnt.host_overheads
        written = max(0, tensors - self._untouched_bytes(candidate))
        least = int(SURE_SHARE * ranks * (written + min(beside, default=0)))
        hopeless = least > self._host_bytes
        touched = tensors - self._unfilled_bytes(candidate)
        return replace(
            told,
            fits=Fits.NO if hopeless else None,
            reason=_cannot(least, self._host_bytes) if hopeless else None,
            peak_tensor_bytes=tensors,
            peak_process_bytes=ranks * (touched + int(statistics.median(beside))) if beside else None,
            low_bytes=least,
        )

    def _beside_host(self, told: Estimate) -> Estimate:
        """What fits on GPUs, but offloads more than the host has, does not fit."""
        memory = self.facts.hardware.host.ram_total_bytes
        if told.host_bytes is None or told.host_bytes <= memory:
            return told
        return replace(told, fits=Fits.NO, reason=f"{_cannot(told.host_bytes, memory)} on the host")

    @property
    def _host_bytes(self) -> int:
        """What processes may take of the host's memory together."""
        return min(filter(None, (self.request.memory_limit_bytes, device_bytes(self.facts.hardware))))

    def _untouched_bytes(self, candidate: Candidate) -> int:
        """Tensors of a rank that need not be in memory. Of frozen embeddings the file may be mapped, of which
        only the rows in use are read; of buckets what is not filled is never written."""
        unfilled = self._unfilled_bytes(candidate)
        if candidate.adapter.method is Method.FULL:
            return unfilled
        modules = self.facts.model.modules
        embeddings = sum(module.parameters for module in modules if module.kind == "embedding")
        return unfilled + BYTES_PER_ELEMENT[candidate.level.weight_dtype] * embeddings

    def _unfilled_bytes(self, candidate: Candidate) -> int:
        trained = estimated_trainable(candidate, self.facts.model)
        return unfilled_bytes(plan_of(candidate), trained)


@lru_cache
def _in_catalogue(name: str) -> Gpu | None:
    """Kept, since every candidate asks, and a name that is unknown is compared with all others."""
    with suppress(InputError):
        return find_gpu(name)
    return None


def _on_gpu(told: Estimate, prediction: TrialPrediction, target: Target) -> Estimate:
    need, memory = prediction.need, memory_of(prediction.need, target)
    verdict = fits(memory, target)
    least = memory.allocated.low + target.overhead.low
    told = replace(
        told,
        fits=verdict,
        reason=_cannot(least, target.capacity_bytes or 0) if verdict is Fits.NO else None,
        peak_allocated_bytes=need.allocated_bytes,
        peak_reserved_bytes=need.reserved_bytes,
        peak_device_bytes=memory.device.mid,
        low_bytes=least,
        high_bytes=memory.device.high,
    )
    speed = speed_of(prediction.work, told.step_tokens, target, prediction.traffic)
    if speed is None:
        return told
    return replace(
        told,
        tokens_per_s=speed.tokens_per_s_mid,
        tokens_per_s_low=speed.tokens_per_s_low,
        tokens_per_s_high=speed.tokens_per_s_high,
    )


def _cannot(least_bytes: int, capacity_bytes: int) -> str:
    size, unit, digits = (2**30, "GiB", 2) if least_bytes >= 2**30 else (2**20, "MiB", 0)
    least, capacity = least_bytes / size, capacity_bytes / size
    return f"it needs at least {least:,.{digits}f} {unit} of {capacity:,.{digits}f} {unit}"


def _host_overhead(measured: Measurement, candidate: Candidate) -> int | None:
    """What each process held beside its tensors; None where it was not measured."""
    if not measured.peak_process_bytes or not measured.peak_tensor_bytes:
        return None
    touched = measured.peak_tensor_bytes - unfilled_bytes(plan_of(candidate), measured.trainable_params or 0)
    return max(0, measured.peak_process_bytes // candidate.level.processes - touched)


def _too_low_by(trial: Trial, gpu: Gpu | None) -> float | None:
    """ln(needed / estimated) of reserved bytes, at least, of what ran out of a GPU's memory.

    None where it had been told to need more than there was, or where others held some of it.
    """
    told = trial.estimate
    if told is None or not told.capacity_bytes or not told.peak_reserved_bytes or _is_disturbed(trial):
        return None
    if trial.candidate.level.sharding:  # what others of a team hold and send is no part of the estimate
        return None
    # The context may have been as large as contexts are: the rest was needed by tensors, and so was the least
    # that is asked of a device, which it did not get.
    beside = context_bytes(None if gpu is None else gpu.compute_capability).high
    ratio = max(0, told.capacity_bytes + SMALL_SEGMENT_BYTES - beside) / told.peak_reserved_bytes
    return math.log(ratio) if ratio > 1 else None


def _overhead_beyond(trial: Trial) -> int | None:
    """What each process of a trial that outgrew its limit on a CPU held beside its tensors, at least.

    None where the tensors alone were told to need as much.
    """
    told, candidate = trial.estimate, trial.candidate
    if told is None or not told.capacity_bytes or not told.peak_tensor_bytes or _is_disturbed(trial):
        return None
    beyond = told.capacity_bytes // candidate.level.processes - told.peak_tensor_bytes
    return beyond if beyond > 0 else None


def _is_disturbed(trial: Trial) -> bool:
    return bool(trial.measurement and trial.measurement.disturbances)


def _step_work(estimate: Estimate) -> StepWork:
    return StepWork(
        flops_by_dtype=dict(estimate.flops), bytes_moved=estimate.moved_bytes, kernels=estimate.kernels
    )


def _adjusted(
    before: Factors, pairs: Sequence[tuple[int | None, int | None]], *, at_least: Sequence[float] = ()
) -> Factors:
    """The factors after (estimated, measured) pairs were seen, and residuals of which only a least is known.

    Those count as no smaller than any that was measured: how much more there was nobody knows.
    """
    residuals = log_ratios((told, measured) for told, measured in pairs if told and measured)
    most = max(residuals, default=0.0)
    residuals = (*residuals, *(max(most, each) for each in at_least))
    if len(residuals) >= least_residuals():
        return conformal_factors(residuals)
    return replace(
        before,
        low=min(before.low, *map(math.exp, residuals)) if residuals else before.low,
        high=max(before.high, *map(math.exp, residuals)) if residuals else before.high,
    )
