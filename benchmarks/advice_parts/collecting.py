"""Which trainings and probes make up the bank, and running those that are not there yet.

Each result is a file of its own under the folder of runs, so that a collection that was cut off goes on where
it stood, and several processes share the work. ``bank.py`` gathers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.home import Home
from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import Adapter, Candidate, StudyFacts, StudyRequest

from . import tasks
from .bank import CONTENDERS, KNOWN_WELL, SEEDS, Bank, Probed, Trained, adapter_key
from .tasks import Task
from .training import Rows, Training, probe, train

NULL_REPLICATES = 40
NULL_TASKS = ("images", "patch-tst", "causal-lm")
NULL_ADAPTERS = ("LoRA r16", "full")
MICRO_BATCH_SHARES = (1, 2, 4)
PROBE_REPEATS = 2

TRUTH_REPLICATES = 15
"""Of contenders: those that no study trains with are the truth of them."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A task with what a study finds out about it."""

    task: Task
    request: StudyRequest
    facts: StudyFacts
    grid: Mapping[str, Adapter]
    tiers: Mapping[str, Adapter]
    peft_default: Adapter

    @classmethod
    def of(cls, task: Task, models: Mapping[str, Path], data: Mapping[str, Path], home: Home) -> Setup:
        """By the job that a study runs; what was found once is kept, so that all runs share their rows."""
        kept = home.root / f"{task.name}.json"
        if kept.is_file():
            told = json.loads(kept.read_text(encoding="utf-8"))
            request, facts = from_json(StudyRequest, told["request"]), from_json(StudyFacts, told["facts"])
        else:
            request, facts = tasks.prepare_facts(task, models, data, home)
            told = {"request": to_json(request), "facts": to_json(facts)}
            kept.write_text(json.dumps(told), encoding="utf-8")
        return cls(
            task,
            request,
            facts,
            tasks.grid_adapters(task, facts, request),
            tasks.tier_adapters(task, facts, request),
            tasks.peft_default(facts),
        )

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Those of the grid and of the rivals, by name."""
        return {**self.grid, **self.tiers, tasks.PEFT_DEFAULT: self.peft_default}


@dataclass(frozen=True, slots=True)
class Job:
    """One training."""

    adapter: str
    rate: float
    steps: int
    replicate: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.adapter}-{self.rate:g}-{self.steps}-{self.replicate}".replace(" ", "_")


def jobs_of(setup: Setup) -> Iterator[Job]:
    """All trainings of a task, those that tell most first."""
    full, *short = setup.task.rungs
    grid = [
        (name, rate)
        for name, adapter in setup.grid.items()
        for rate in tasks.rates_of(tasks.candidate_of(adapter, setup.facts).learning_rate)
    ]
    rivals = [(tasks.PEFT_DEFAULT, rate) for rate in tasks.PEFT_DEFAULT_RATES]
    rivals += [
        (name, tasks.candidate_of(each, setup.facts).learning_rate) for name, each in setup.tiers.items()
    ]
    yield from (Job(name, rate, full, 0) for name, rate in grid)
    yield from (Job(name, rate, steps, 0) for steps in short for name, rate in grid)
    yield from (Job(name, rate, full // 2, 0) for name, rate in grid)
    for replicate in range(1, tasks.REPLICATES):
        yield from (Job(name, rate, full, replicate) for name, rate in grid)
    for replicate in range(tasks.REPLICATES):
        yield from (Job(name, rate, full, replicate) for name, rate in rivals)


def null_jobs(bank: Bank) -> Iterator[Job]:
    """Many replicates of two configurations, each at the rate that was best: what chance alone does."""
    if bank.name not in NULL_TASKS:
        return
    means = means_of(bank)
    best = [min((key for key in means if key[0] == name), key=means.__getitem__) for name in NULL_ADAPTERS]
    for replicate in range(SEEDS, NULL_REPLICATES):
        for name, rate in best:
            if (name, rate, bank.steps, replicate) not in bank.trained:
                yield Job(name, rate, bank.steps, replicate)


def truth_jobs(bank: Bank) -> Iterator[Job]:
    """More seeds of what might be a task's best, where three do not say what is."""
    means = means_of(bank)
    first, *others = sorted(means, key=means.__getitem__)
    losses = bank.losses(*first)
    if np.std(losses, ddof=1) / np.sqrt(len(losses)) <= KNOWN_WELL * means[first]:
        return
    for replicate in range(SEEDS, TRUTH_REPLICATES):
        for name, rate in (first, *others[: CONTENDERS - 1]):
            if (name, rate, bank.steps, replicate) not in bank.trained:
                yield Job(name, rate, bank.steps, replicate)


def means_of(bank: Bank) -> dict[tuple[str, float], float]:
    """Adapter and rate of the grid's configurations → mean loss of its three seeds."""
    return {
        (name, rate): float(np.mean(bank.losses(name, rate)))
        for name in bank.grid
        for rate in bank.rates(name, min(bank.rungs))
    }


def gather(setup: Setup, runs: Path) -> Bank:
    """Everything that was collected of a task; its grid is empty where nothing is whole."""
    folder = runs / setup.task.name
    wanted = {name: adapter for name, adapter, _ in wanted_jobs(setup, runs)}
    trained: list[Trained] = []
    items: np.ndarray[Any, Any] | None = None
    for path in sorted(folder.glob("*.npz")):
        told, arrays = read_training(path)
        if told["outcome"] == "ok":
            items = arrays.pop("row_items")
        told["metric"] = None if told["metric"] is None or np.isnan(told["metric"]) else told["metric"]
        kept = {key: arrays[key] for key in ("train_losses", "row_losses")}
        trained.append(Trained(**{**told, **kept}))
    return Bank(
        name=setup.task.name,
        request=setup.request,
        facts=setup.facts,
        rungs=setup.task.rungs,
        grid=_complete(setup, trained),
        adapters={**setup.adapters, **wanted},
        items=np.zeros(0, np.float32) if items is None else items,
        trained=trained,
        probed=[_probed(path) for path in sorted((folder / "probes").glob("*.json"))],
    )


def _complete(setup: Setup, trained: Sequence[Trained]) -> tuple[str, ...]:
    """Adapters of the grid with all their trainings: a collection may have been cut off."""
    known = {Job(each.adapter, each.rate, each.steps, each.replicate) for each in trained}
    lacking = {job.adapter for job in jobs_of(setup) if job not in known}
    return tuple(name for name in setup.grid if name not in lacking)


def wanted_jobs(setup: Setup, runs: Path) -> Iterator[tuple[str, Adapter, Job]]:
    """What replays asked for, each with its adapter's name."""
    path = _wanted_file(setup.task.name, runs)
    if not path.is_file():
        return
    names = {adapter_key(adapter): name for name, adapter in reversed(list(setup.adapters.items()))}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        adapter = from_json(Adapter, entry["adapter"])
        name = names.get(adapter_key(adapter), adapter.describe())
        yield name, adapter, Job(name, entry["rate"], entry["steps"], entry["replicate"])


def run_wanted(setup: Setup, runs: Path, *, part: int, parts: int) -> int:
    """Run what replays asked for and is not there; how many were run."""
    rows = Rows.of(setup.facts)
    done = 0
    for number, (_, adapter, job) in enumerate(wanted_jobs(setup, runs)):
        path = runs / setup.task.name / f"{job.name}.npz"
        if number % parts == part and not path.exists():
            candidate = tasks.candidate_of(adapter, setup.facts, rate=job.rate)
            found = train(setup.facts, rows, candidate, steps=job.steps, replicate=job.replicate)
            write_training(path, job, found)
            done += 1
    return done


def _wanted_file(name: str, runs: Path) -> Path:
    return runs.parent / "wanted" / f"{name}.json"


def _probed(path: Path) -> Probed:
    told = json.loads(path.read_text(encoding="utf-8"))
    known = ("adapter", "checkpointing", "micro_batch", "outcome", "wall_s")
    rest = {
        key: value for key, value in told.items() if key not in (*known, "reason", "repeats", "train_losses")
    }
    return Probed(**{key: told[key] for key in known}, measurement=rest)


def run_trainings(setup: Setup, runs: Path, jobs: Iterable[Job], *, part: int, parts: int) -> int:
    """Run every ``parts``-th of these trainings, if it is not there; how many were run."""
    folder = runs / setup.task.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows.of(setup.facts)
    done = 0
    for number, job in enumerate(jobs):
        path = folder / f"{job.name}.npz"
        if number % parts != part or path.exists():
            continue
        candidate = tasks.candidate_of(setup.adapters[job.adapter], setup.facts, rate=job.rate)
        write_training(
            path, job, train(setup.facts, rows, candidate, steps=job.steps, replicate=job.replicate)
        )
        done += 1
    return done


def run_probes(setup: Setup, runs: Path) -> int:
    """Probe every shape twice, the second time after all others, and keep the faster; how many were run."""
    folder = runs / setup.task.name / "probes"
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for repeat in range(PROBE_REPEATS):
        for name, candidate in shapes_of(setup):
            path = folder / f"{_shape_name(name, candidate)}.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"repeats": 0}
            if known["repeats"] > repeat:
                continue
            found = {
                "adapter": name,
                "checkpointing": candidate.level.gradient_checkpointing,
                "micro_batch": candidate.micro_batch,
                **probe(setup.facts, candidate),
            }
            faster = max((known, found), key=lambda each: each.get("samples_per_s") or 0.0)
            kept = found if repeat == 0 else faster
            path.write_text(json.dumps({**kept, "repeats": repeat + 1}), encoding="utf-8")
            done += 1
    return done


def shapes_of(setup: Setup) -> Iterator[tuple[str, Candidate]]:
    """Adapters at three micro-batches, checkpointed and those of the rivals at the largest."""
    batch = setup.facts.recipe.effective_batch
    can_checkpoint = (False, True) if setup.facts.model.supports_gradient_checkpointing else (False,)
    for name, adapter in setup.adapters.items():
        for checkpointing in can_checkpoint:
            for share in MICRO_BATCH_SHARES if name in setup.grid and not checkpointing else (1,):
                yield (
                    name,
                    tasks.candidate_of(
                        adapter, setup.facts, checkpointing=checkpointing, micro_batch=batch // share
                    ),
                )


def write_training(path: Path, job: Job, training: Training) -> None:
    """One training's file, there only when it is whole."""
    told: dict[str, Any] = {
        "adapter": job.adapter,
        "rate": job.rate,
        "steps": job.steps,
        "replicate": job.replicate,
        "outcome": training.outcome,
        "reason": training.reason,
        "metric": training.metric,
        "build_s": training.build_s,
        "steps_s": training.steps_s,
        "evaluation_s": training.evaluation_s,
    }
    unfinished = path.with_suffix(".partial.npz")
    np.savez(
        unfinished,
        told=json.dumps(told),
        train_losses=training.train_losses,
        row_losses=training.row_losses,
        row_items=training.row_items,
    )
    unfinished.rename(path)


def read_training(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was told of a training, and its arrays."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in ("train_losses", "row_losses", "row_items")}
        return json.loads(str(file["told"])), arrays


def _shape_name(name: str, candidate: Candidate) -> str:
    kept = "checkpointed" if candidate.level.gradient_checkpointing else "kept"
    return f"{name}-{kept}-{candidate.micro_batch}".replace(" ", "_")
