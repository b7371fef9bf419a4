"""Ways to choose a configuration within a budget of trial-seconds: rankwise's search, and rivals.

Each sees a :class:`.replay.Replay` only. Knows nothing of what the truth is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import optuna

from rankwise.optimizer.domain import Candidate, Objective, Study, StudyState
from rankwise.optimizer.methods import learning_rate
from rankwise.optimizer.scorer import recommend
from rankwise.optimizer.search import RunTrial, SearchLimits, next_step

from .bank import Trained
from .replay import Replay

PEFT_DEFAULT = "PEFT default"
TIERS = ("full", "tier r16", "tier r32", "tier r32 all")
MOST_TRIALS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a strategy recommends, and what it took to find it."""

    adapter: str
    rate: float
    checkpointing: bool = False
    micro_batch: int | None = None
    """None: the whole effective batch."""
    spent_s: float
    trials: int


Strategy = Callable[[Replay, float], Chosen]
"""(a study's world, the budget in seconds) → what is recommended."""


def rankwise(replay: Replay, budget_s: float, *, objective: Objective) -> Chosen:
    """The product's own search and scorer."""
    bank = replay.bank
    request = replace(bank.request, objective=objective, budget_s=budget_s, max_trials=MOST_TRIALS)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    study = Study(
        id="replay",
        request=request,
        state=StudyState.RUNNING,
        created_at=now,
        updated_at=now,
        facts=bank.facts,
    )
    candidates = replay.candidates()
    while True:
        limits = SearchLimits(
            memory_limit_bytes=None,
            max_trials=MOST_TRIALS,
            budget_s=budget_s,
            spent_s=replay.spent_s,
            full_steps=bank.steps,
            quality_first=request.lets_pass is not None,
        )
        step = next_step(candidates, replay.trials, limits, request.effective_weights)
        if not isinstance(step, RunTrial):
            break
        replay.run(step.plan)
    found = recommend(study, replay.trials, wall_s=replay.spent_s, measured_s=replay.spent_s)
    return _chosen(replay, found.candidate)


def peft_default(_: Replay, __: float, *, rate: float) -> Chosen:
    """``LoraConfig()`` at a usual rate, nothing tried."""
    return Chosen(adapter=PEFT_DEFAULT, rate=rate, spent_s=0.0, trials=0)


def untuned(replay: Replay, _: float) -> Chosen:
    """The first candidate of rankwise's own list, at its own rate, nothing tried."""
    return _chosen(replay, replay.candidates()[0])


def tiers(replay: Replay, budget_s: float) -> Chosen:
    """The first design's row for 14 to 20 GiB, each trained in full at its own rate while the budget lasts;
    checkpointed, as that design has it."""
    checkpointing = replay.bank.facts.model.supports_gradient_checkpointing
    tried: list[tuple[float, Trained]] = []
    for name in TIERS:
        method = replay.bank.adapters[name].method
        rate = learning_rate(method, replay.bank.facts.model.hidden_size)
        trained = replay.trained(name, rate, replay.bank.steps, 0)
        if trained is None:
            continue
        cost_s = replay.cost_s(trained, checkpointing=checkpointing)
        if tried and replay.spent_s + cost_s > budget_s:
            break
        replay.spent_s += cost_s
        tried.append((replay.loss(trained), trained))
    return _least(replay, tried, checkpointing=checkpointing)


def random_search(replay: Replay, budget_s: float) -> Chosen:
    """Whole trainings of configurations drawn without replacement, the lowest held-out loss, one seed."""
    bank = replay.bank
    grid = [(name, rate) for name in bank.grid for rate in _grid_rates(replay, name)]
    tried: list[tuple[float, Trained]] = []
    for number in replay.rng.permutation(len(grid)):
        name, rate = grid[number]
        trained = replay.trained(name, rate, bank.steps, 0)
        if trained is None:
            continue
        cost_s = replay.cost_s(trained)
        if tried and replay.spent_s + cost_s > budget_s:
            break
        replay.spent_s += cost_s
        tried.append((replay.loss(trained), trained))
    return _least(replay, tried)


def hyperband(replay: Replay, budget_s: float) -> Chosen:
    """Optuna's TPE with its HyperbandPruner on the same grid.

    A trial pays for the steps of its longest rung once, as if it had gone on, and for each evaluation.
    """
    optuna.logging.set_verbosity(logging.ERROR)
    bank = replay.bank
    lengths = sorted(bank.rungs)
    study = optuna.create_study(
        study_name=bank.name,  # by which trials are dealt to brackets
        sampler=optuna.samplers.TPESampler(seed=int(replay.rng.integers(2**31))),
        pruner=optuna.pruners.HyperbandPruner(
            min_resource=lengths[0], max_resource=lengths[-1], reduction_factor=3
        ),
    )
    finished: list[tuple[float, Trained]] = []
    best_short: list[tuple[float, Trained]] = []
    trials = 0
    while True:
        trial = study.ask()
        name = trial.suggest_categorical("adapter", list(bank.grid))
        rates = _grid_rates(replay, name)
        rate = rates[trial.suggest_int("rate", 0, len(rates) - 1)]
        paid_s, went_on = 0.0, True
        for steps in lengths:
            trained = replay.trained(name, rate, steps, 0)
            if trained is None:
                raise SystemExit(f"{bank.name}: {name} at {rate} for {steps} steps is not in the bank")
            more_s = replay.cost_s(trained) - paid_s
            if (finished or best_short) and replay.spent_s + more_s > budget_s:
                chosen = finished or best_short
                return _least(replay, chosen, trials=trials)
            replay.spent_s += more_s
            paid_s += more_s
            loss = replay.loss(trained)
            if loss == float("inf"):
                went_on = False
                break
            trial.report(loss, steps)
            best_short.append((loss, trained))
            if steps < lengths[-1] and trial.should_prune():
                went_on = False
                break
        trials += 1
        if went_on:
            study.tell(trial, loss)
            finished.append((loss, trained))
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)


STRATEGIES: dict[str, Strategy] = {
    "rankwise, quality": partial(rankwise, objective=Objective.QUALITY),
    "rankwise, balanced": partial(rankwise, objective=Objective.BALANCED),
    "Optuna TPE + Hyperband": hyperband,
    "random search": random_search,
    "fixed tiers": tiers,
    "rankwise's first guess": untuned,
    "PEFT default, 2e-4": partial(peft_default, rate=2e-4),
    "PEFT default, 5e-5": partial(peft_default, rate=5e-5),
}


def _grid_rates(replay: Replay, name: str) -> list[float]:
    """Rates of the grid, without those that were collected for rankwise's sake."""
    return replay.bank.rates(name, min(replay.bank.rungs))


def _least(
    replay: Replay,
    tried: list[tuple[float, Trained]],
    *,
    checkpointing: bool = False,
    trials: int | None = None,
) -> Chosen:
    _, best = min(tried, key=lambda pair: pair[0])
    return Chosen(
        adapter=best.adapter,
        rate=best.rate,
        checkpointing=checkpointing,
        spent_s=replay.spent_s,
        trials=len(tried) if trials is None else trials,
    )


def _chosen(replay: Replay, candidate: Candidate) -> Chosen:
    name = replay.bank.name_of(candidate.adapter)
    if name is None:
        raise SystemExit(f"{replay.bank.name}: {candidate.describe()} is not in the bank")
    return Chosen(
        adapter=name,
        rate=candidate.learning_rate,
        checkpointing=candidate.level.gradient_checkpointing,
        micro_batch=candidate.micro_batch,
        spent_s=replay.spent_s,
        trials=len(replay.trials),
    )
