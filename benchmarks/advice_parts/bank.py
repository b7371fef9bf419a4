"""What was collected of a task, in two files: figures as JSON, losses of single rows as arrays.

Knows nothing of how it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.optimizer.codec import digest, from_json, identity, to_json
from rankwise.optimizer.domain import Adapter, StudyFacts, StudyRequest

Array = np.ndarray[Any, Any]

SEEDS = 3
"""Of each configuration of the grid."""

SEEDS_SEEN = 5
"""Replicates below this are those that a study may train with (``training.MOST_SEEDS``)."""

LEAST_OF_TRUTH = 8
"""So many seeds that no study sees, and they alone are the truth."""

CONTENDERS = 8
"""Configurations of a task whose truth is worth knowing better: the lowest means over the grid's seeds …"""

KNOWN_WELL = 0.03
"""… where the standard error of the lowest is above this share of it."""


NEAR = 1.5
"""What lies further above the best, as a ratio, is not taken for it by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One training of the bank."""

    adapter: str
    """By its name in the tables."""
    rate: float
    steps: int
    replicate: int
    outcome: str
    reason: str | None
    metric: float | None
    build_s: float
    steps_s: float
    evaluation_s: float
    """On all held-out rows."""
    train_losses: Array
    row_losses: Array
    """Of each held-out row, summed over its items, in the file's order; empty where it diverged."""

    @property
    def is_ok(self) -> bool:
        """It ended with a number."""
        return self.outcome == "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One probe of the bank, the faster of two."""

    adapter: str
    checkpointing: bool
    micro_batch: int
    outcome: str
    wall_s: float
    measurement: Mapping[str, Any]


class Bank:
    """All that is known of a task.

    Args:
        request, facts: of the study that everything belongs to.
        adapters: by name; ``grid`` names those that studies may try.
        items: of each held-out row.
        trained, probed: the results.
    """

    def __init__(
        self,
        *,
        name: str,
        request: StudyRequest,
        facts: StudyFacts,
        rungs: tuple[int, ...],
        grid: tuple[str, ...],
        adapters: Mapping[str, Adapter],
        items: Array,
        trained: Iterable[Trained],
        probed: Iterable[Probed],
    ) -> None:
        self.name, self.request, self.facts, self.rungs = name, request, facts, rungs
        self.grid, self.adapters, self.items = grid, dict(adapters), items
        self.trained = {(t.adapter, t.rate, t.steps, t.replicate): t for t in trained}
        self.probed = {(p.adapter, p.checkpointing, p.micro_batch): p for p in probed}
        # A tier's adapter may be one of the grid's: the grid's name counts.
        self._names = {adapter_key(adapters[n]): n for n in reversed(list(adapters))}
        self._truths: dict[tuple[str, float], float] = {}

    @property
    def steps(self) -> int:
        """The whole budget of a training."""
        return self.rungs[0]

    def name_of(self, adapter: Adapter) -> str | None:
        """Under which it is known here."""
        return self._names.get(adapter_key(adapter))

    def rates(self, adapter: str, steps: int | None = None) -> list[float]:
        """Those that it was trained at, for so many steps (the whole budget), ascending."""
        length = steps or self.steps
        return sorted({t.rate for t in self.trained.values() if (t.adapter, t.steps) == (adapter, length)})

    def loss(self, trained: Trained, rows: Array | None = None) -> float:
        """Mean over the items of these held-out rows (all); infinite where it diverged."""
        if not trained.is_ok:
            return float("inf")
        if rows is None:
            return float(trained.row_losses.sum(dtype=float) / self.items.sum(dtype=float))
        return float(trained.row_losses[rows].sum(dtype=float) / self.items[rows].sum(dtype=float))

    def besides_s(self, adapter: str) -> tuple[float, float]:
        """Building and evaluation: the least of all its trainings, since others can only slow one down."""
        own = [each for each in self.trained.values() if each.adapter == adapter]
        evaluations = [each.evaluation_s for each in own if each.is_ok]
        return min(each.build_s for each in own), min(evaluations, default=0.0)

    def losses(self, adapter: str, rate: float) -> list[float]:
        """Of the whole budget on all rows, one of each of the grid's replicates."""
        return list(self._of(adapter, rate, range(SEEDS)).values())

    def seeds_of_truth(self, adapter: str, rate: float) -> dict[int, float]:
        """Replicate → loss on all rows: of those that no study trains with where enough of them are there,
        else of the grid's."""
        beyond = max(replicate for *_, replicate in self.trained) + 1
        unseen = self._of(adapter, rate, range(SEEDS_SEEN, beyond))
        return unseen if len(unseen) >= LEAST_OF_TRUTH else self._of(adapter, rate, range(SEEDS))

    def truth(self, adapter: str, rate: float) -> float:
        """What a configuration's held-out loss is: the mean over all rows and the seeds of truth."""
        if (adapter, rate) not in self._truths:
            self._truths[adapter, rate] = float(np.mean(list(self.seeds_of_truth(adapter, rate).values())))
        return self._truths[adapter, rate]

    def _of(self, adapter: str, rate: float, replicates: Iterable[int]) -> dict[int, float]:
        found = {each: self.trained.get((adapter, rate, self.steps, each)) for each in replicates}
        return {each: self.loss(trained) for each, trained in found.items() if trained is not None}

    def best_truth(self) -> tuple[str, float, float]:
        """Adapter, rate and loss of the grid's best configuration."""
        truths = {(name, rate): self.truth(name, rate) for name in self.grid for rate in self.rates(name)}
        best = min(truths, key=truths.__getitem__)
        return *best, truths[best]

    def standard_error(self, adapter: str, rate: float) -> float:
        """Of a configuration's truth: what chance leaves open of its mean over seeds."""
        losses = list(self.seeds_of_truth(adapter, rate).values())
        return float(np.std(losses, ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else float("nan")

    def optimism(self, *, draws: int = 500) -> float:
        """By how much, as a share, the best looks better than it is for being the least of many means.

        Bootstrap over seeds: how far the least mean of drawn seeds lies below the truth of whichever it is.
        """
        truths = {(name, rate): self.truth(name, rate) for name in self.grid for rate in self.rates(name)}
        best = min(truths.values())
        near = [key for key, truth in truths.items() if truth <= NEAR * best]
        losses = [np.array(list(self.seeds_of_truth(*key).values())) for key in near]
        rng = np.random.default_rng(0)
        below = []
        for _ in range(draws):
            means = [float(rng.choice(each, len(each)).mean()) for each in losses]
            least = int(np.argmin(means))
            below.append(truths[near[least]] - means[least])
        return float(np.mean(below)) / best

    def add(self, other: Bank) -> None:
        """Take over another bank's trainings of the same rows that are not here yet.

        Raises:
            SystemExit: its rows are others.
        """
        if not np.array_equal(self.items, other.items):
            raise SystemExit(
                f"{self.name}: what was collected was judged on other rows than what is committed"
            )
        for key, trained in other.trained.items():
            self.trained.setdefault(key, trained)
        for name, adapter in other.adapters.items():
            self.adapters.setdefault(name, adapter)

    def save(self, folder: Path, *, below: str) -> None:
        """Write ``NAME.json`` and ``NAME.npz``.

        Args:
            folder: of both.
            below: a folder's path; of paths that lead there, what comes before it is left out.
        """
        trained, probed = list(self.trained.values()), list(self.probed.values())
        arrays = ("train_losses", "row_losses")
        told = {
            "name": self.name,
            "request": to_json(self.request),
            "facts": to_json(self.facts),
            "rungs": self.rungs,
            "grid": self.grid,
            "adapters": {name: to_json(adapter) for name, adapter in self.adapters.items()},
            "trained": [
                {key: getattr(each, key) for key in Trained.__slots__ if key not in arrays}
                for each in trained
            ],
            "probed": [{key: getattr(each, key) for key in Probed.__slots__} for each in probed],
        }
        text = json.dumps(told, indent=None, separators=(",", ":"))
        text = re.sub(rf'"/[^"]*/{re.escape(below)}/', f'"{below}/', text)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        rows = np.full((len(trained), len(self.items)), np.nan, np.float32)
        steps = np.full((len(trained), max(self.rungs)), np.nan, np.float32)
        for number, each in enumerate(trained):
            if each.is_ok:
                rows[number] = each.row_losses
            steps[number, : len(each.train_losses)] = each.train_losses
        np.savez_compressed(
            folder / f"{self.name}.npz", row_losses=rows, train_losses=steps, items=self.items
        )


def load(folder: Path, name: str) -> Bank:
    """One task's bank.

    Raises:
        SystemExit: it was not collected.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: run `python benchmarks/advice.py collect`, then `gather`")
    told = json.loads(path.read_text(encoding="utf-8"))
    with np.load(folder / f"{name}.npz") as file:
        row_losses, train_losses, items = (file[key] for key in ("row_losses", "train_losses", "items"))
    trained = [
        Trained(
            **each,
            row_losses=row_losses[number] if each["outcome"] == "ok" else np.zeros(0, np.float32),
            train_losses=train_losses[number][np.isfinite(train_losses[number])],
        )
        for number, each in enumerate(told["trained"])
    ]
    return Bank(
        name=name,
        request=from_json(StudyRequest, told["request"]),
        facts=from_json(StudyFacts, told["facts"]),
        rungs=tuple(told["rungs"]),
        grid=tuple(told["grid"]),
        adapters={key: from_json(Adapter, value) for key, value in told["adapters"].items()},
        items=items,
        trained=trained,
        probed=[Probed(**each) for each in told["probed"]],
    )


def names_in(folder: Path) -> list[str]:
    """Tasks that were collected, by name."""
    return sorted(path.stem for path in folder.glob("*.npz"))


def adapter_key(adapter: Adapter) -> str:
    """Equal for equal adapters, whatever people call their targets."""
    return digest(identity(adapter))
