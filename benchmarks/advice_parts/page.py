"""All replays, and the page about them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from rankwise.optimizer.codec import to_json

from . import judging
from .bank import CONTENDERS, KNOWN_WELL, Bank
from .judging import Judged, judge
from .replay import Missing, Replay
from .strategies import STRATEGIES

WORKERS = 2
SEEDS_OF_TRUTH = 3

HEAD = """\
# How good the advice is

Made by `python benchmarks/advice.py replay`, on the trainings in `benchmarks/advice_data`. On each task all
configurations of a grid (eight adapters, of the two language models five, × five learning rates, three seeds)
were trained once, so the best is known; then each strategy was let choose, {seeds} times a task and budget,
seeing 256 of the held-out rows (half of them where there are few) and paying for its trials what they took.
Models are small and trainings short (96 optimizer steps of 8 rows, on {machine}):
what holds for large ones is another question.

A budget of 18 is the time of 18 median trainings of the grid: 15 % of the 120 that eight adapters make.
"Loss above the best": of the chosen configuration, by its truth, a mean over all held-out rows and seeds.
Where three seeds leave open which is best (its standard error is above {known:.0%}), the {contenders} lowest
means were trained with eight seeds and more that no study sees (`collect --truth`), and these alone are
their truth; of all others it is the grid's three seeds, which studies draw from, too.
"Speed lost": against the fastest shape (adapter, checkpointing, micro-batch) of those that learn no less
than what was chosen. Intervals are bootstrapped over tasks and replays.

Read with care: where three seeds are the truth, what a strategy trained is a third of what it is held
against, so whole trainings look a little better than they are; a study's first three seeds are the same
three in another order; and a grid is small, so at a budget of 24 random search has seen more than half of
it. The best is the least of many means, so it looks better than it is, by about as much as the last column
of "The tasks" says. Where its standard error there is above 3 %, so small a loss cannot be told from chance.
"""


@dataclass(frozen=True, slots=True)
class Replays:
    """What came of all replays."""

    judged: Mapping[tuple[str, float], Sequence[Judged]]
    """By strategy and budget, in full trainings."""
    lacking: int
    """Trainings that a search wanted and no bank has."""


def replay_all(
    banks: Sequence[Bank], *, seeds: int, budgets: Sequence[float], only: Collection[str] | None, wanted: Path
) -> Replays:
    """Let strategies choose on every bank; what these lack is noted below ``wanted``."""
    names = [name for name in STRATEGIES if not only or any(name.startswith(each) for each in only)]
    judged: dict[tuple[str, float], list[Judged]] = {(n, b): [] for b in budgets for n in names}
    lacking = 0
    jobs = [(name, budget, seed) for name, budget in judged for seed in range(seeds)]
    with ProcessPoolExecutor(WORKERS) as pool:
        for bank in banks:
            missing: dict[Missing, None] = {}
            answers = pool.map(partial(_replayed, bank), *zip(*jobs, strict=True), chunksize=8)
            for (name, budget, _), (found, lacked) in zip(jobs, answers, strict=True):
                judged[name, budget].append(found)
                missing.update(dict.fromkeys(lacked))
            _note(wanted / f"{bank.name}.json", missing, bank)
            lacking += len(missing)
            print(f"{bank.name}: {len(jobs)} replays, {len(missing)} trainings lacked", flush=True)
    return Replays(judged, lacking)


def compose(banks: Sequence[Bank], replays: Replays, *, seeds: int) -> str:
    """The page."""
    budgets = sorted({budget for _, budget in replays.judged})
    middle = budgets[len(budgets) // 2]
    nulls = [bank for bank in banks if judging.null_configurations(bank)]
    parts = [
        HEAD.format(seeds=seeds, machine=_machine(banks[0]), contenders=CONTENDERS, known=KNOWN_WELL),
        "## Strategies\n",
        judging.table_of(replays.judged),
        f"Loss above the best, task by task, at a budget of {middle:g}:\n",
        judging.tasks_table(replays.judged, middle),
        "## The tasks\n",
        judging.grid_table(banks),
        "## Learning rates chosen early\n",
        "Loss above that of the adapter's best rate, means over adapters.\n",
        judging.rates_table(banks),
        "## Adapters cut early\n",
        "Loss above the best where only the best adapters of a short training go on, at their best rates.\n",
        judging.rungs_table(banks),
        "## What seeds do\n",
        "Between three seeds of one configuration; the last column leaves out what a seed does to all.\n",
        judging.spread_table(banks),
    ]
    if nulls:
        parts += [
            "Whether comparisons keep their promises, in studies drawn from many seeds of one configuration: "
            "in how many any two of three equal candidates are called *different* (wanted: at most 5 %), in "
            "how many one whose rows were all made 5 % better is *found* to be better than both others "
            "(wanted: at least 90 %), and how often the 90 % interval of the difference to the other "
            "configuration *held* the true one (wanted: 85 to 95 %).\n",
            judging.seeds_table(nulls),
        ]
    if replays.lacking:
        parts.append(
            f"{replays.lacking} trainings that a search wanted are not in the bank: it was told that they "
            "were lost.\n"
        )
    return "\n".join(parts)


def unit_s(replay: Replay) -> float:
    """What a full training costs: the median over the grid."""
    bank = replay.bank
    costs = [
        replay.cost_s(each)
        for each in bank.trained.values()
        if each.steps == bank.steps and each.replicate == 0 and each.adapter in bank.grid
    ]
    return float(np.median(costs))


def _machine(bank: Bank) -> str:
    """What it was all run on."""
    host = bank.facts.hardware.host
    return f"{host.cpu_model or 'a CPU'}, {host.logical_cores} cores, torch {host.libraries.get('torch')}"


def _replayed(bank: Bank, name: str, budget: float, seed: int) -> tuple[Judged, list[Missing]]:
    replay = Replay(bank, seed)
    budget_s = budget * unit_s(replay)
    found = judge(bank, seed, STRATEGIES[name](replay, budget_s))
    return replace(found, spent=found.spent / budget_s), replay.missing


def _note(path: Path, missing: Iterable[Missing], bank: Bank) -> None:
    """Add to what ``collect --wanted`` runs. Of a whole training all seeds of the truth are wanted."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for each in missing:
        seeds = {each.replicate, *range(SEEDS_OF_TRUTH)} if each.steps == bank.steps else {each.replicate}
        for seed in sorted(seeds):
            entry = {
                "adapter": to_json(each.adapter),
                "rate": each.rate,
                "steps": each.steps,
                "replicate": seed,
            }
            if entry not in known:
                known.append(entry)
    if known:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known), encoding="utf-8")
