"""What strategies chose against the truth, and what else the bank tells. Writes Markdown.

The truth of a configuration is its held-out loss over all rows and many seeds, or three (``Bank.truth``); a
replay saw a part of the rows. Knows nothing of how choices were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rankwise.optimizer.domain import HeldoutScores, Relation
from rankwise.optimizer.methods import learning_rate
from rankwise.optimizer.paired import Run, compare, each_confidence, seed_spread

from .bank import Array, Bank
from .replay import STUDY_ROWS
from .strategies import Chosen

BOOTSTRAP = 2000
SHORTER = (2, 4, 10)
"""Trainings that lasted the whole budget divided by these."""
GOOD_ENOUGH = 0.01
"""A choice whose loss is at most this share above the best one's counts as found."""

CANDIDATES = 3
"""Of a drawn study."""

PLANTED = 0.05
"""Share of the loss."""

INTERVAL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One choice in one replay."""

    task: str
    seed: int
    regret: float
    """How much more loss than the grid's best, as a share of it."""
    speed_regret: float | None
    """What is missing to the speed of the fastest shape whose loss is no higher."""
    spent: float
    """Seconds, until it is related to the budget."""
    trials: int


def judge(bank: Bank, seed: int, chosen: Chosen) -> Judged:
    """Hold a choice against the truth."""
    *_, best = bank.best_truth()
    loss = bank.truth(chosen.adapter, chosen.rate)
    as_good = {
        name for name in bank.grid if any(bank.truth(name, rate) <= loss for rate in bank.rates(name))
    } | {chosen.adapter}
    speeds = {
        key: probed.measurement["samples_per_s"]
        for key, probed in bank.probed.items()
        if probed.outcome == "ok" and key[0] in as_good
    }
    batch = chosen.micro_batch or bank.facts.recipe.effective_batch
    own = speeds.get((chosen.adapter, chosen.checkpointing, batch))
    return Judged(
        task=bank.name,
        seed=seed,
        regret=loss / best - 1,
        speed_regret=None if own is None else 1 - own / max(speeds.values()),
        spent=chosen.spent_s,
        trials=chosen.trials,
    )


def table_of(judged: Mapping[tuple[str, float], Sequence[Judged]]) -> str:
    """Strategies at each budget, with bootstrap intervals over tasks and seeds."""
    lines = [
        "| budget, full trainings | strategy | loss above the best, mean (95 %) | median | worst task | "
        f"within {GOOD_ENOUGH:.0%} | speed lost, mean (95 %) | spent, share of budget | trials |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, budget), found in judged.items():
        regrets = [each.regret for each in found]
        by_task = _by_task(found, lambda each: each.regret)
        speeds = [each for each in found if each.speed_regret is not None]
        lost = _interval(_by_task(speeds, lambda each: each.speed_regret or 0.0)) if speeds else "not probed"
        spent = np.mean([each.spent for each in found])
        lines.append(
            f"| {budget:g} | {name} | {_interval(by_task)} | {np.median(regrets):.2%} | "
            f"{max(float(np.mean(own)) for own in by_task.values()):.1%} | "
            f"{np.mean([regret <= GOOD_ENOUGH for regret in regrets]):.0%} | {lost} | "
            f"{spent:.3g} | {np.mean([each.trials for each in found]):.1f} |"
        )
    return "\n".join(lines) + "\n"


def tasks_table(judged: Mapping[tuple[str, float], Sequence[Judged]], budget: float) -> str:
    """Mean loss above the best, task by task, at one budget."""
    names = [name for name, at in judged if at == budget]
    tasks = sorted({each.task for found in judged.values() for each in found})
    lines = [f"| strategy | {' | '.join(tasks)} |", f"|{'---|' * (len(tasks) + 1)}"]
    for name in names:
        by_task = _by_task(judged[name, budget], lambda each: each.regret)
        cells = (f"{np.mean(by_task[task]):.2%}" for task in tasks)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def grid_table(banks: Sequence[Bank]) -> str:
    """What each task's grid holds: how much there is to lose."""
    lines = [
        "| task | model | held-out rows | trainings | best | its loss | worst adapter at its own rate | "
        "median of the grid | PEFT default, 2e-4 | seeds of its truth | standard error of the best's loss | "
        "by how much the least of many means looks better than it is |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for bank in banks:
        name, rate, best = bank.best_truth()
        truths = [bank.truth(each, at) for each in bank.grid for at in bank.rates(each)]
        own = {each: bank.truth(each, own_rate(bank, each)) for each in bank.grid}
        worst = max(own, key=own.__getitem__)
        lines.append(
            f"| {bank.name} | {bank.facts.model.model_type} | {len(bank.items)} | {len(bank.trained)} | "
            f"{name} at {rate:g} | {best:.4g} | {worst} {own[worst] / best - 1:+.1%} | "
            f"{np.median(truths) / best - 1:+.1%} | {bank.truth('PEFT default', 2e-4) / best - 1:+.1%} | "
            f"{len(bank.seeds_of_truth(name, rate))} | {bank.standard_error(name, rate) / best:.1%} | "
            f"{bank.optimism():.1%} |"
        )
    return "\n".join(lines) + "\n"


def rates_table(banks: Sequence[Bank]) -> str:
    """Loss lost by a rate that a short training chose, and by each method's own rate; means over adapters."""
    shares = (*reversed(SHORTER), 1)
    chosen_at = " | ".join(f"chosen at 1/{share}" for share in shares[:-1])
    lines = [
        f"| task | own rate | {chosen_at} | chosen by one whole training | "
        "best rate, in steps of √10 from the own one |",
        f"|{'---|' * (len(shares) + 3)}",
    ]
    every: dict[int, list[float]] = {}
    for bank in banks:
        lost: dict[int, list[float]] = {0: [], **{share: [] for share in shares}}
        best_steps = []
        for name in bank.grid:
            rates = bank.rates(name, min(bank.rungs))
            truth = {rate: bank.truth(name, rate) for rate in rates}
            best = min(truth.values())
            own = own_rate(bank, name)
            lost[0].append(truth[own] / best - 1)
            for share in shares:
                chosen = chosen_rate(bank, name, round(bank.steps / share))
                lost[share].append(truth[chosen] / best - 1)
            best_rate = min(truth, key=truth.__getitem__)
            best_steps.append(f"{name} {round(2 * np.log10(best_rate / own)):+d}")
        for key, values in lost.items():
            every.setdefault(key, []).extend(values)
        cells = (_share(float(np.mean(values))) for values in lost.values())
        lines.append(f"| {bank.name} | {' | '.join(cells)} | {', '.join(best_steps)} |")
    cells = (
        f"{_share(float(np.mean(each)))} (median {_share(float(np.median(each)))})" for each in every.values()
    )
    lines.append(f"| all | {' | '.join(cells)} | |")
    return "\n".join(lines) + "\n"


def rungs_table(banks: Sequence[Bank]) -> str:
    """What is lost where only the best few adapters of a short training go on.

    Each adapter goes on at the rate that was best when it was cut; the best of those in truth is then found.
    """
    kept = (1, 2, 3, 4, 6)
    lines = [
        f"| task | after | {' | '.join(f'{count} go on' for count in kept)} | rank correlation |",
        f"|{'---|' * (len(kept) + 3)}",
    ]
    every: dict[int, list[list[float]]] = {}
    for bank in banks:
        *_, best = bank.best_truth()
        for share in SHORTER:
            steps = round(bank.steps / share)
            arms = [(name, chosen_rate(bank, name, steps)) for name in bank.grid]
            short = [bank.loss(bank.trained[name, rate, steps, 0]) for name, rate in arms]
            truths = [bank.truth(name, rate) for name, rate in arms]
            order = np.argsort(short)
            lost = [min(truths[each] for each in order[:count]) / best - 1 for count in kept]
            every.setdefault(share, []).append(lost)
            ranks = [np.argsort(np.argsort(values)) for values in (short, truths)]
            correlation = np.corrcoef(*ranks)[0, 1]
            cells = " | ".join(map(_share, lost))
            lines.append(f"| {bank.name} | 1/{share} | {cells} | {correlation:.2f} |")
    for share, losses in every.items():
        cells = " | ".join(_share(float(each)) for each in np.mean(losses, axis=0))
        lines.append(f"| mean | 1/{share} | {cells} | |")
    return "\n".join(lines) + "\n"


def own_rate(bank: Bank, name: str) -> float:
    """The rate that a study would start from."""
    return learning_rate(bank.adapters[name].method, bank.facts.model.hidden_size)


def chosen_rate(bank: Bank, name: str, steps: int) -> float:
    """The rate of least held-out loss after so many steps, of one seed and on all rows."""
    rates = bank.rates(name, min(bank.rungs))
    return min(rates, key=lambda rate: bank.loss(bank.trained[name, rate, steps, 0]))


def seeds_table(banks: Sequence[Bank], *, draws: int = 200) -> str:
    """Whether comparisons keep their promises, where one configuration was run with many seeds."""
    counts = (2, 3, 5)
    heads = [f"{what}, {count} seeds" for count in counts for what in ("different", "found", "held")]
    lines = [
        f"| task | configuration | seeds | sd of seeds, share of loss | {' | '.join(heads)} |",
        f"|{'---|' * (4 + len(heads))}",
    ]
    for bank in banks:
        configurations = null_configurations(bank)
        for name, rate in configurations:
            own = replicates(bank, name, rate)
            losses = [bank.loss(bank.trained[name, rate, bank.steps, each]) for each in own]
            other = next((each for each in configurations if each != (name, rate)), None)
            cells = []
            for count in counts:
                shares = calibrate(bank, (name, rate), other, seeds=count, draws=draws)
                cells += ["" if share is None else f"{share:.0%}" for share in shares]
            spread = float(np.std(losses, ddof=1) / np.mean(losses))
            lines.append(
                f"| {bank.name} | {name} at {rate:g} | {len(own)} | {spread:.2%} | {' | '.join(cells)} |"
            )
    return "\n".join(lines) + "\n"


def spread_table(banks: Sequence[Bank]) -> str:
    """Standard deviation between three seeds, as a share of the loss, over the grid."""
    lines = [
        "| task | all configurations, median | 90 % below | those within 10 % of the best, median | "
        "what a seed does to one configuration alone |",
        "|---|---|---|---|---|",
    ]
    for bank in banks:
        # By the same three seeds: what more of them say is another matter.
        best = min(float(np.mean(bank.losses(name, rate))) for name in bank.grid for rate in bank.rates(name))
        shares, near, tables = [], [], []
        for name in bank.grid:
            for rate in bank.rates(name):
                losses = bank.losses(name, rate)
                if len(losses) < 3 or not np.isfinite(losses).all():
                    continue
                share = float(np.std(losses, ddof=1) / np.mean(losses))
                shares.append(share)
                if np.mean(losses) <= 1.1 * best:
                    near.append(share)
                    tables.append(losses)
        residual = _residual_share(np.array(tables)) if len(tables) > 1 else float("nan")
        lines.append(
            f"| {bank.name} | {np.median(shares):.2%} | {np.quantile(shares, 0.9):.2%} | "
            f"{np.median(near):.2%} | {residual:.2%} |"
        )
    return "\n".join(lines) + "\n"


def null_configurations(bank: Bank) -> list[tuple[str, float]]:
    """Adapter and rate of what was run with many seeds."""
    counts: dict[tuple[str, float], int] = {}
    for name, rate, steps, _ in bank.trained:
        if steps == bank.steps:
            counts[name, rate] = counts.get((name, rate), 0) + 1
    return [key for key, count in counts.items() if count >= 20]


def replicates(bank: Bank, name: str, rate: float) -> list[int]:
    """Seeds of a configuration's whole trainings that ended with a number."""
    return sorted(
        replicate
        for (adapter, at, steps, replicate), each in bank.trained.items()
        if (adapter, at, steps) == (name, rate, bank.steps) and each.is_ok
    )


def calibrate(
    bank: Bank, own: tuple[str, float], other: tuple[str, float] | None, *, seeds: int, draws: int
) -> tuple[float, float, float | None]:
    """Shares of drawn studies with three candidates of so many seeds each.

    Those in which any two of three equal candidates are called different; those in which one whose rows were
    all made 5 % better is called better than both others; and those in which the 90 % interval of the
    difference to another configuration holds the true one, which is that of all seeds and rows.
    """
    rng = np.random.default_rng(0)
    confidence = each_confidence(CANDIDATES)
    pools = {key: replicates(bank, *key) for key in (own, other) if key is not None}
    means = {
        key: np.mean([bank.loss(bank.trained[*key, bank.steps, each]) for each in pool])
        for key, pool in pools.items()
    }
    different = found = held = 0
    for _ in range(draws):
        # With replacement: the bank's rows stand for all that might be drawn, of which a study sees a few.
        rows = rng.choice(len(bank.items), min(STUDY_ROWS, len(bank.items) // 2))
        drawn = rng.choice(pools[own], (CANDIDATES, seeds), replace=False)
        runs = [[run_of(bank, *own, int(each), rows) for each in line] for line in drawn]
        spread = seed_spread(runs)
        different += any(
            compare(first, second, spread).relation(confidence) is not Relation.NO_DIFFERENCE
            for first, second in combinations(runs, 2)
        )
        first, *others = [[planted(run) for run in runs[0]], *runs[1:]]
        spread = seed_spread([first, *others])
        found += all(compare(first, each, spread).relation(confidence) is Relation.BETTER for each in others)
        if other is not None:
            chosen = rng.choice(pools[other], (CANDIDATES - 1, seeds), replace=False)
            theirs = [[run_of(bank, *other, int(each), rows) for each in line] for line in chosen]
            low, high = compare(runs[0], theirs[0], seed_spread([runs[0], *theirs])).interval(INTERVAL)
            held += low <= means[own] - means[other] <= high
    return different / draws, found / draws, None if other is None else held / draws


def planted(run: Run) -> Run:
    """The same training with every row's loss less by the planted share."""
    assert run.rows is not None  # noqa: S101 - made by run_of
    scores = HeldoutScores(
        losses=tuple((1 - PLANTED) * loss for loss in run.rows.losses), items=run.rows.items
    )
    return Run(scores.loss, scores)


def run_of(bank: Bank, name: str, rate: float, replicate: int, rows: Array) -> Run:
    """A whole training as a study sees it."""
    losses = bank.trained[name, rate, bank.steps, replicate].row_losses[rows]
    scores = HeldoutScores(
        losses=tuple(map(float, losses)), items=tuple(int(each) for each in bank.items[rows])
    )
    return Run(scores.loss, scores)


def _residual_share(table: Array) -> float:
    """Of a table of configurations × seeds, what is left after both: as a share of the mean loss."""
    centred = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(np.sqrt((centred**2).sum() / degrees) / table.mean())


def _by_task(found: Sequence[Judged], value: Callable[[Judged], float]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for each in found:
        groups.setdefault(each.task, []).append(value(each))
    return groups


def _interval(by_task: Mapping[str, Sequence[float]]) -> str:
    """Mean over tasks, with a 95 % bootstrap interval over tasks and, within each, seeds."""
    rng = np.random.default_rng(0)
    groups = [np.asarray(values) for values in by_task.values()]
    means = []
    for _ in range(BOOTSTRAP):
        drawn = rng.integers(len(groups), size=len(groups))
        means.append(
            np.mean(
                [
                    groups[each][rng.integers(len(groups[each]), size=len(groups[each]))].mean()
                    for each in drawn
                ]
            )
        )
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{_share(np.mean([group.mean() for group in groups]))} ({_share(low)} … {_share(high)})"


def _share(value: float) -> str:
    return f"{value:.2%}" if value < 0.0995 else f"{value:.0%}"
