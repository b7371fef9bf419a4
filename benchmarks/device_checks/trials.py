"""Checks of trials as studies run them: one candidate each, and two that want too much memory.

Each fills in its figures, returns where all is as it should be, and raises Failed or Skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_checks.bench import Bench, Failed, Prepared, Skipped, Wish, ran, record_of, rows_that_overflow
from device_checks.estimates import errors_of, require_close
from device_checks.memory import FREE_LIMIT_S, UsedMemory, gib, returned_to
from rankwise.optimizer.domain import Method, Outcome, Trial
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.sizes import least_bytes

Figures = dict[str, Any]

FITTING_SHARE = 0.5
"""Where weights, gradients and optimizer state take less of the free memory than this, a trial must fit.
One must that was estimated to, whatever it takes."""

CPU_LIMIT_BYTES = 150 * 2**20
GPU_LIMIT_BYTES = 2 * 2**30


def check_trial(
    bench: Bench,
    figures: Figures,
    *,
    name: str,
    wish: Wish | None = None,
    changes: Mapping[str, Any] | None = None,
    method: Method = Method.LORA,
    leaner_than: str | None = None,
) -> None:
    """A probe of one candidate as a study runs it, with figures that agree with each other and with what a
    dry run told before.

    Args:
        bench: what it runs on.
        figures: filled with the estimate, the trial's record, and how far they are apart.
        name: the check's, under which the record is kept.
        wish: the candidate; None makes one on the bench's small model.
        changes: settings of the level, where no wish is given.
        method: likewise.
        leaner_than: an earlier check whose trial needed more memory, on a GPU.
    """
    wish = wish or Wish(shape=bench.small_shape, method=method, level=changes or {})
    prepared = bench.study(wish.shape)
    candidate = bench.candidate(prepared, wish)
    needed = least_bytes(candidate, prepared.facts.model)
    free = bench.device.total_bytes - (bench.used_bytes() or 0) if bench.device else None
    figures |= {"shape": wish.shape, "least_bytes": needed, "free_bytes": free}
    if free is not None and needed > free:
        raise Skipped(f"weights, gradients and optimizer state need {gib(needed)} of {gib(free)}")
    told = figures["estimate"] = bench.estimate(prepared, candidate)
    with UsedMemory(bench) as used:
        trial = bench.measure(prepared, candidate)
    figures |= record_of(trial) | {"peak_used_growth_bytes": used.growth_bytes}
    figures["estimate_errors"] = errors_of(figures)
    must_fit = told is not None and told["fits"] == Fits.YES
    if trial.outcome is Outcome.OOM and free is not None and needed > FITTING_SHARE * free and not must_fit:
        raise Skipped(f"did not fit {gib(free)}: {trial.reason}")
    require_measured(bench, trial, figures)
    bench.trials[name] = figures
    other = bench.trials.get(leaner_than or "")
    if bench.is_on_gpu and other and figures["peak_allocated_bytes"] >= other["peak_allocated_bytes"]:
        raise Failed(
            f"allocated {gib(figures['peak_allocated_bytes'])}, no less than {leaner_than} with "
            f"{gib(other['peak_allocated_bytes'])}"
        )
    if told is not None:
        require_close(figures, is_on_gpu=bench.is_on_gpu)


def require_measured(bench: Bench, trial: Trial, figures: Mapping[str, Any]) -> None:
    """Raise Failed unless the trial ran where it should, and its figures can be true."""
    if not ran(trial):
        raise Failed(f"the trial ended as {trial.outcome}: {trial.reason}")
    if trial.reused_from is not None:
        raise Failed("nothing was run: the figures are another check's")
    if not figures["tokens_per_s"]:
        raise Failed("no speed was measured")
    least, tensors = figures["least_bytes"], figures["peak_tensor_bytes"]
    if tensors is not None and tensors < least:
        raise Failed(f"tensors took {gib(tensors)}, less than the lower bound {gib(least)}")
    if bench.device is None:
        return
    allocated, reserved = figures["peak_allocated_bytes"], figures["peak_reserved_bytes"]
    if not allocated:
        raise Failed("the trial did not run on the GPU: CUDA's allocator was not used")
    if not least <= allocated <= reserved <= bench.device.total_bytes:
        raise Failed(
            f"at least {gib(least)} is needed, {gib(allocated)} was allocated, {gib(reserved)} reserved: "
            "these should not fall"
        )
    seen = [figures["peak_device_bytes"], figures["peak_used_growth_bytes"]]
    held = max((size for size in seen if size is not None), default=None)
    if held is not None and held < reserved:
        raise Failed(f"NVML saw {gib(held)} at most where CUDA reserved {gib(reserved)}")


def check_oom_at_limit(bench: Bench, figures: Figures) -> None:
    """A trial that wants more memory than the study's limit ends as oom."""
    limit = GPU_LIMIT_BYTES if bench.is_on_gpu else CPU_LIMIT_BYTES
    prepared = bench.study(bench.small_shape, memory_limit_bytes=limit)
    rows = prepared.facts.train_rows
    batch = min(rows, rows_that_overflow(limit, bench.small_shape)) if bench.is_on_gpu else rows
    figures["memory_limit_bytes"] = limit
    require_oom(bench, figures, prepared, batch)


def check_oom_on_device(bench: Bench, figures: Figures) -> None:
    """A batch whose logits are larger than the device ends as oom, and takes nothing else with it."""
    if bench.device is None:
        raise Skipped("needs a GPU")
    prepared = bench.study(bench.small_shape)
    before = bench.used_bytes()
    require_oom(bench, figures, prepared, rows_that_overflow(bench.device.total_bytes, bench.small_shape))
    if not returned_to(bench, before, figures, key="memory_back_s"):
        raise Failed(f"the memory was not free again after {FREE_LIMIT_S:.0f} s")


def require_oom(bench: Bench, figures: Figures, prepared: Prepared, batch: int) -> None:
    """Raise Failed unless a probe of full fine-tuning with this micro-batch ends as oom."""
    wish = Wish(
        shape=bench.small_shape, method=Method.FULL, level={}, micro_batch=batch, effective_batch=batch
    )
    with UsedMemory(bench) as used:
        trial = bench.measure(prepared, bench.candidate(prepared, wish))
    figures |= record_of(trial) | {"peak_used_growth_bytes": used.growth_bytes, "micro_batch": batch}
    if trial.outcome is not Outcome.OOM:
        raise Failed(f"it ended as {trial.outcome}, not as oom: {trial.reason}")
