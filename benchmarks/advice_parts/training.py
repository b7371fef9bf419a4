"""Runs trainings and probes through the product's own code, and measures them. Knows no files of results.

Everything runs in one thread and is timed by the processor time that it took: what else runs on the machine
counts for little then.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Candidate, StudyFacts
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.keys import derive_seed
from rankwise.runners.array_files import open_rows
from rankwise.runners.build import InvalidTrial
from rankwise.runners.messages import TrialSpec
from rankwise.runners.recipe import Example, step_rows
from rankwise.runners.trial import loop
from rankwise.runners.trial.checks import STEPS_BEFORE_CHECK, Diverged
from rankwise.runners.trial.evaluation import evaluate
from rankwise.runners.trial.job import checked, measure_trial
from rankwise.runners.trial.loop import Step, open_session, run_steps

from .tasks import STUDY_SEED

PROBE_LIMIT_S = 600.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """A task's rows, decoded once."""

    train: Sequence[Example]
    heldout: Sequence[Example]

    @classmethod
    def of(cls, facts: StudyFacts) -> Rows:
        """Those that the study's facts point at."""
        folder = Path(facts.tokens_path)
        train, heldout = (open_rows(folder / f"{name}.arrow") for name in ("train", "heldout"))
        return cls([train[row] for row in range(len(train))], [heldout[row] for row in range(len(heldout))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What one training was seen to do."""

    outcome: str
    reason: str | None = None
    train_losses: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    row_losses: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of each held-out row, summed over its items, in the file's order."""
    row_items: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    metric: float = math.nan
    build_s: float = 0.0
    steps_s: float = 0.0
    evaluation_s: float = 0.0


def train(facts: StudyFacts, rows: Rows, candidate: Candidate, *, steps: int, replicate: int) -> Training:
    """Train a candidate for so many steps, its schedule as long, with the seeds of a study's replicate."""
    spec = _spec(facts, candidate, rung="train", steps=steps, replicate=replicate)
    started_s = time.process_time()
    session = open_session(
        spec.model_path,
        task=spec.task,
        candidate=spec.candidate,
        adapter_config=spec.adapter_config,
        pad_id=spec.pad_id,
        seed=spec.seed,
        total_steps=steps,
        on_cpu=True,
    )
    built_s = time.process_time()
    batch = candidate.recipe.effective_batch
    order = step_rows(len(rows.train), effective_batch=batch, seed=spec.order_seed)
    taken: list[Step] = []
    try:
        taken.extend(checked(session, run_steps(session, rows.train, order, last=steps), STEPS_BEFORE_CHECK))
        trained_s = time.process_time()
        evaluation = evaluate(session, rows.heldout)
        judged_s = time.process_time()
    except (Diverged, InvalidTrial) as error:
        return Training(
            outcome="diverged" if isinstance(error, Diverged) else "invalid",
            reason=str(error),
            train_losses=np.array([step.loss for step in taken], np.float32),
            build_s=built_s - started_s,
            steps_s=time.process_time() - built_s,
        )
    finally:
        del session
        gc.collect()
    losses = np.array(evaluation.losses, np.float32)
    finite = bool(np.isfinite(losses).all())
    return Training(
        outcome="ok" if finite else "diverged",
        reason=None if finite else "the held-out loss is no number",
        train_losses=np.array([step.loss for step in taken], np.float32),
        row_losses=losses,
        row_items=np.array(evaluation.items, np.float32),
        metric=math.nan if evaluation.metric_value is None else evaluation.metric_value,
        build_s=built_s - started_s,
        steps_s=trained_s - built_s,
        evaluation_s=judged_s - trained_s,
    )


def probe(facts: StudyFacts, candidate: Candidate) -> dict[str, Any]:
    """A probe of a candidate as a study's trial makes it, in a process of its own.

    The measurement's fields, with ``outcome``, ``reason`` and ``wall_s``, all seconds from launch to end.
    """
    spec = _spec(facts, candidate, rung="probe", steps=facts_steps(facts), replicate=0)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_probe_into, args=(spec, theirs))
    process.start()
    theirs.close()
    try:
        answer: dict[str, Any] = (
            ours.recv()
            if ours.poll(PROBE_LIMIT_S)
            else {"outcome": "timeout", "reason": "no answer", "wall_s": PROBE_LIMIT_S}
        )
    except EOFError:
        answer = {"outcome": "crashed", "reason": "the process ended without a word", "wall_s": 0.0}
    process.kill()
    process.join()
    return answer


def facts_steps(facts: StudyFacts) -> int:
    """Optimizer steps of the task's whole budget."""
    recipe = facts.recipe
    return max(1, round(facts.train_rows // recipe.effective_batch * recipe.epochs))


def _probe_into(spec: TrialSpec, pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        with patch.object(loop, "time", SimpleNamespace(perf_counter=time.process_time)):
            measured, _ = measure_trial(spec, _Silence())
        answer = {"outcome": "ok", "reason": None, **measured}
    except (Diverged, InvalidTrial) as error:
        answer = {"outcome": "diverged" if isinstance(error, Diverged) else "invalid", "reason": str(error)}
    pipe.send({**answer, "wall_s": time.process_time()})


class _Silence:
    """A report that nobody reads."""

    def __call__(self, kind: str, /, **fields: Any) -> None:
        pass

    def every_second(self, kind: str, /, **fields: Any) -> None:
        pass


def _spec(facts: StudyFacts, candidate: Candidate, *, rung: str, steps: int, replicate: int) -> TrialSpec:
    """As ``StudyRun.spec`` makes it."""
    task: Mapping[str, Any] = to_json(facts.dataset.task)
    return TrialSpec(
        model_path=facts.model.path,
        tokens_path=facts.tokens_path,
        task=task,
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate,
            task_kind=facts.dataset.task.kind,
            base_model=facts.model.source,
            total_steps=steps,
        ),
        rung=rung,
        total_steps=steps,
        pad_id=facts.pad_id,
        seed=derive_seed(STUDY_SEED, "model", replicate),
        order_seed=derive_seed(STUDY_SEED, "order", replicate),
        threads=1,
    )
