"""A trial from its spec to its result, inside the child process.

Knows nothing about the database or the search: it reads a spec, trains, measures, and reports JSON lines.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..adalora import pruned_away
from ..array_files import open_rows
from ..build import InvalidTrial, trained_parts
from ..messages import JUDGING, Report, TrialSpec
from ..modules import InvalidQuantization
from ..recipe import Example, step_rows
from ..spreading import is_spread
from ..team import own_rank, world_size
from ..tokens import RowFile
from .checks import (
    STEPS_BEFORE_CHECK,
    Diverged,
    ParameterWatch,
    require_finite,
    require_separate_samples,
)
from .evaluation import evaluate
from .heldout_sample import evenly_chosen
from .judge import own_metric
from .loop import Session, Step, open_session, run_step, run_steps
from .measure import (
    ProcessMemory,
    StoppingRule,
    communication_share,
    cuda_peaks,
    finite_or_none,
    peak_tensor_bytes,
    speed_of,
    time_steps,
    weight_bytes,
    without_compiling,
)
from .ranks import run_ranks

WARMUP_STEPS = {"cpu": 1, "cuda": STEPS_BEFORE_CHECK + 1}
"""Untimed steps on ordinary batches at a probe's beginning, in which kernels are loaded and caches fill. On a
CPU the second step is as fast as any later one; on a GPU four take next to no time."""

RANK_FIELDS = (
    "peak_tensor_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_process_bytes",
    "step_s_mean",
)
"""What each of several processes measures of itself."""

HOST_OOM_MESSAGES = ("can't allocate memory", "cannot allocate memory", "not enough memory")


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of a ``trial`` job: reports one ``result`` or one ``failure``."""
    trial = TrialSpec.from_mapping(spec)
    if not is_spread(trial.candidate["level"]):
        attempt(trial, report)
        return
    if trial.deepspeed is not None and trial.on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: F401 - once for all ranks; on a GPU it might touch CUDA, which none could use then
    threads = max(1, trial.threads // trial.processes)
    of_rank = replace(trial, threads=threads)
    run_ranks(trial.processes, lambda rank, join, said: attempt(of_rank, said, rank=rank, join=join), report)


def attempt(
    trial: TrialSpec, report: Report, *, rank: int = 0, join: Callable[[], None] = lambda: None
) -> None:
    """Run the trial, or one rank of it, and report how that ended.

    Args:
        trial: with the threads of this process.
        report: of this process.
        rank: of this process.
        join: meets the other ranks, once it is settled which device is whose.
    """
    try:
        choose_devices(trial, rank)
        join()
        measured, heldout = measure_trial(trial, report)
    except (InvalidTrial, InvalidQuantization, Diverged) as error:
        outcome = "diverged" if isinstance(error, Diverged) else "invalid"
        report("failure", outcome=outcome, reason=str(error))
    except (MemoryError, RuntimeError) as error:
        lacking = memory_outcome(error)
        if lacking is None:
            raise
        report("failure", outcome=lacking, reason=str(error).splitlines()[0])
    else:
        report("result", measurement=measured, heldout=heldout)


def choose_devices(trial: TrialSpec, rank: int) -> None:
    """Make the trial's devices the only ones that this process sees. Before CUDA is initialised.

    Raises:
        InvalidTrial: they are GPUs that torch does not find; accelerate would silently take the CPU.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(trial.devices)
    if trial.on_cpu:
        torch.set_num_threads(trial.threads)
        # accelerate and DeepSpeed ask these, and not torch.
        os.environ |= {"OMP_NUM_THREADS": str(trial.threads), "DS_ACCELERATOR": "cpu"}
        return
    if not torch.cuda.is_available():
        built_for = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise InvalidTrial(
            f"torch {torch.__version__}, built {built_for}, does not find the GPU {', '.join(trial.devices)} "
            "that the driver lists: install a build of torch for this driver"
        )
    torch.cuda.set_device(rank)
    if trial.memory_limit_bytes is not None:
        total_bytes = torch.cuda.get_device_properties(rank).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, trial.memory_limit_bytes / total_bytes))


def memory_outcome(error: MemoryError | RuntimeError) -> str | None:
    """Whose memory did not suffice, by the error's type and text; None where it is about something else.

    The driver's ``CUDA error: out of memory`` is a plain RuntimeError, as is the CPU allocator's complaint.
    """
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or ("cuda" in text and "out of memory" in text):
        return "oom"
    if isinstance(error, MemoryError) or any(message in text for message in HOST_OOM_MESSAGES):
        return "host-oom"
    return None


def measure_trial(trial: TrialSpec, report: Report) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Build, check, train and measure.

    Returns:
        The fields of a ``Measurement``, and those of ``HeldoutScores``; None of the latter for a probe.
    """
    memory = ProcessMemory()
    rows = open_rows(Path(trial.tokens_path) / "train.arrow")
    heldout = evenly_chosen(open_rows(Path(trial.tokens_path) / "heldout.arrow"), trial.heldout_rows)
    probing = trial.rung == "probe"
    candidate = constant_rate(trial.candidate) if probing else trial.candidate
    report("progress", phase="build")
    session = open_session(
        trial.model_path,
        task=trial.task,
        candidate=candidate,
        adapter_config=trial.adapter_config,
        pad_id=trial.pad_id,
        seed=trial.seed,
        total_steps=trial.total_steps,
        on_cpu=trial.on_cpu,
        has_weights=trial.has_weights,
        trust_remote_code=trial.trust_remote_code,
        factory=trial.factory,
        deepspeed=trial.deepspeed,
    )
    report("progress", phase="built", weight_bytes=weight_bytes(session.model))
    if candidate["recipe"]["packing"]:
        check_packing(session, rows)
    order = step_rows(
        len(rows), effective_batch=candidate["recipe"]["effective_batch"], seed=trial.order_seed
    )
    steps = run_steps(session, rows, order, last=None if probing else trial.total_steps)
    if probing:
        measured, scores = probe(session, rows, steps), None
    else:
        measured, scores = train(session, steps, heldout, report)
    talking = measured.pop("communication_share", None)
    found = {
        **measured,
        "peak_process_bytes": memory.peak_bytes(),
        **cuda_peaks(session.device),
        "trainable_params": session.census.trained,
        "total_params": session.census.total,
        "trainable_sha256": session.census.trained_sha256,
    }
    if world_size() > 1:
        own = {name: found[name] for name in RANK_FIELDS if name in found}
        found["ranks"] = [{"rank": own_rank(), "communication_share": talking, **own}]
    if trial.judge is not None and not probing:
        folder = Path(trial.judge["folder"])
        report("progress", phase=JUDGING)
        try:
            session.save(folder, labels=trial.task["labels"], is_made=trial.factory is not None)
            del session, steps  # the command may need the memory
            gc.collect()
            torch.cuda.empty_cache()
            if own_rank() > 0:
                return found, scores  # rank 0 speaks for all
            metric = own_metric(trial.judge["command"], folder, limit_s=trial.judge["limit_s"])
            found["own_metric"] = metric
            found["own_loss"] = metric if trial.judge["lower_is_better"] else -metric
        finally:
            if own_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
    return found, scores


def constant_rate(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """The candidate with its full learning rate from the first step: a probe has no schedule to follow."""
    return {**candidate, "recipe": {**candidate["recipe"], "schedule": "constant", "warmup_ratio": 0.0}}


def checked(session: Session, steps: Iterator[Step], least: int, most: int | None = None) -> Iterator[Step]:
    """Pass the steps on; at the end every trained tensor must have moved and every frozen one stood still.

    Args:
        session: whose parameters are watched, from now on.
        steps: what is passed on; a loss that is no number ends it.
        least: with fewer updates than this nothing is concluded.
        most: ends after this many updates; None passes on all steps.

    Raises:
        Diverged, InvalidTrial: see :mod:`.checks`.
    """
    watch = ParameterWatch(session.model)
    updates = 0
    for step in steps:
        require_finite(step.loss, step.number)
        yield step
        updates += not step.skipped
        if updates == most:
            break
    if updates >= least:
        adapter = session.candidate["adapter"]
        watch.check(
            session.model,
            lenient=not session.has_adapter,
            trained_parts=trained_parts(adapter),
            pruned=pruned_away(tuner) if (tuner := session.tuner) is not None else (),
        )


def check_packing(session: Session, rows: RowFile) -> None:
    """Try whether samples see each other, in the first row that several share."""
    for row in rows:
        if row.starts is not None and len(row.starts) > 1:
            require_separate_samples(session, row)
            return


def probe(session: Session, rows: RowFile, steps: Iterator[Step]) -> dict[str, Any]:
    """Speed on real batches; memory on the heaviest batch that the recipe can make, evaluation included."""
    timed = time_steps(warm_steps(session, steps), StoppingRule())
    for step in timed:
        require_finite(step.loss, step.number)
    effective, micro_batch = session.candidate["recipe"]["effective_batch"], session.candidate["micro_batch"]
    heaviest = rows.heaviest(effective, micro_batch=micro_batch)  # each rank's first micro-batch among them
    run_step(session, heaviest, 0)  # untracked, so that the allocator's and the process's peaks are real
    evaluate(session, heaviest)
    # The second micro-batch meets the gradients of the first; a third adds nothing.
    two_micro_batches = heaviest[: 2 * micro_batch * world_size()]
    return {
        "communication_share": communication_share(session, heaviest),
        **speed_fields(timed, has_tokens=rows[0].arrays is None),
        "steps_measured": len(timed),
        "measured_s": sum(step.seconds for step in timed),
        "peak_tensor_bytes": peak_tensor_bytes(session, two_micro_batches),
    }


def warm_steps(session: Session, steps: Iterator[Step]) -> Iterator[Step]:
    """The steps, without those in which the machine warms up or compiles; the first few are checked."""
    first = list(checked(session, steps, STEPS_BEFORE_CHECK, most=STEPS_BEFORE_CHECK))
    warming = WARMUP_STEPS[session.device.type]
    if session.candidate["level"]["compile"]:
        warming = max(warming, len(first))
    for number, step in enumerate(chain(first, without_compiling(session, steps))):
        require_finite(step.loss, step.number)
        if number >= warming:
            yield step


def speed_fields(timed: Sequence[Step], *, has_tokens: bool) -> dict[str, Any]:
    """The fields of a ``Measurement`` that tell how fast these steps were."""
    speed = speed_of(timed)
    return {
        "tokens_per_s": speed.tokens_per_s if has_tokens else None,
        "tokens_per_s_rel_halfwidth": speed.rel_halfwidth,
        "samples_per_s": speed.samples_per_s,
        "steps_per_s": 1 / speed.step_s_mean,
        "step_s_mean": speed.step_s_mean,
        "step_s_std": speed.step_s_std,
    }


def train(
    session: Session, steps: Iterator[Step], heldout: Sequence[Example], report: Report
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train on the token budget, then evaluate on the held-out rows; see :func:`measure_trial`.

    The first steps, in which kernels are loaded, do not count for the speed.
    """
    taken = []
    for step in checked(session, steps, STEPS_BEFORE_CHECK):
        taken.append(step)
        report.every_second("progress", phase="train", step=len(taken), loss=step.loss)
    report("progress", phase="evaluate", step=len(taken))
    started_s = time.perf_counter()
    evaluation = evaluate(session, heldout)
    evaluation_s = time.perf_counter() - started_s
    require_finite(evaluation.loss, len(taken) - 1)
    has_tokens, steady = heldout[0].arrays is None, taken[STEPS_BEFORE_CHECK:]
    measured = {
        **(speed_fields(steady, has_tokens=has_tokens) if steady else {}),
        "steps_measured": len(taken),
        "measured_s": sum(step.seconds for step in taken),
        "evaluation_s": evaluation_s,
        "heldout_loss": evaluation.loss,
        "heldout_loss_se": finite_or_none(evaluation.loss_se),
        "heldout_rows": evaluation.rows,
        "metric_name": evaluation.metric_name,
        "metric_value": evaluation.metric_value,
        "metrics": dict(evaluation.metrics),
        "trained_tokens": sum(step.tokens for step in taken) if has_tokens else None,
        "train_losses": [step.loss for step in taken],
    }
    return measured, {"losses": evaluation.losses, "items": evaluation.items}
