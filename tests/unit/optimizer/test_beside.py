"""A search over several devices: what is started beside what runs."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.optimizer.beside import next_beside
from rankwise.optimizer.domain import (
    OBJECTIVE_WEIGHTS,
    Candidate,
    HeldoutScores,
    Level,
    Measurement,
    Objective,
    Outcome,
    Rung,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.search import RunTrial, SearchLimits, next_step

GIB = 2**30
BALANCED = OBJECTIVE_WEIGHTS[Objective.BALANCED]
LIMITS = SearchLimits(
    memory_limit_bytes=None, max_trials=60, budget_s=600.0, spent_s=0.0, full_steps=1000, probe_s_guess=10.0
)
PROBE_S, TRAINING_S = 10.0, 20.0


@dataclass
class Site:
    """Several devices that run plans at a scripted pace."""

    build: Any
    candidates: tuple[Candidate, ...]
    devices: int
    limits: SearchLimits = LIMITS
    wall_s: Callable[[TrialPlan], float] = lambda plan: PROBE_S if plan.rung is Rung.PROBE else TRAINING_S
    outcome: Callable[[TrialPlan], Outcome] = lambda _: Outcome.OK
    loss: Callable[[TrialPlan], float] = lambda plan: 0.5 + 0.01 * (len(plan.candidate.id) % 7)
    trials: list[Trial] = field(default_factory=list)
    running: list[tuple[float, int]] = field(default_factory=list)
    """(when it ends, number)"""
    now_s: float = 0.0
    most_at_once: int = 0

    def spent(self) -> SearchLimits:
        done = (trial.wall_s or 0.0 for trial in self.trials if trial.state is TrialState.FINISHED)
        return replace(self.limits, spent_s=sum(done))

    def ids(self) -> list[str]:
        return [self.trials[number - 1].id for _, number in self.running]

    def beside(self) -> RunTrial | None:
        return next_beside(self.candidates, self.trials, self.spent(), BALANCED, running=self.ids())

    def start(self, plan: TrialPlan) -> None:
        number = len(self.trials) + 1
        trial = self.build.trial(plan.candidate, number, rung=plan.rung, train_steps=plan.train_steps)
        unfinished = replace(
            trial, plan=plan, state=TrialState.RUNNING, outcome=None, measurement=None, wall_s=None
        )
        self.trials.append(unfinished)
        heapq.heappush(self.running, (self.now_s + self.wall_s(plan), number))
        self.most_at_once = max(self.most_at_once, len(self.running))

    def end_one(self) -> None:
        self.now_s, number = heapq.heappop(self.running)
        trial = self.trials[number - 1]
        plan, outcome = trial.plan, self.outcome(trial.plan)
        figures: dict[str, Any] = {"peak_process_bytes": GIB, "measured_s": 5.0}
        rows = None
        if plan.rung is Rung.PROBE:
            figures |= {"tokens_per_s": 1000.0, "step_s_mean": (TRAINING_S - 5.0) / 1000}
        else:
            loss = self.loss(plan)
            figures["heldout_loss"] = loss
            rows = HeldoutScores(
                losses=tuple(loss * share for share in (0.5, 1.0, 1.5) * 30), items=(1,) * 90
            )
        is_ok = outcome is Outcome.OK
        self.trials[number - 1] = replace(
            trial,
            state=TrialState.FINISHED,
            outcome=outcome,
            measurement=Measurement(**figures) if is_ok else None,
            heldout=rows if is_ok else None,
            wall_s=self.wall_s(plan),
        )

    def finish(self) -> str:
        while True:
            if len(self.running) < self.devices:
                step = (
                    self.beside()
                    if self.running
                    else next_step(self.candidates, self.trials, self.spent(), BALANCED)
                )
                if isinstance(step, RunTrial):
                    self.start(step.plan)
                    continue
                if step is not None:
                    return step.reason
            self.end_one()

    def plans(self) -> list[tuple[str, Rung, int, int]]:
        return [
            (
                trial.candidate.shape_key if trial.plan.rung is Rung.PROBE else trial.candidate.id,
                trial.plan.rung,
                trial.plan.train_steps,
                trial.plan.replicate,
            )
            for trial in self.trials
        ]


@pytest.fixture(scope="session")
def few(build: Any) -> tuple[Candidate, ...]:
    """Six adapters at plain levels."""
    found = enumerate_candidates(build.facts(), build.request())
    adapters = list(dict.fromkeys(candidate.adapter for candidate in found))[:6]
    plain = replace(found[0].level, gradient_checkpointing=False)
    kept = tuple(c for c in found if c.adapter in adapters and c.level in (plain, Level()))
    assert len({candidate.adapter for candidate in kept}) == 6
    return kept


def varied(plan: TrialPlan) -> float:
    """Another loss for each candidate, and a little of it for each seed."""
    return 0.5 + random.Random(plan.candidate.id).random() / 5 + 0.01 * plan.replicate


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_are_all_used_and_nothing_runs_twice(build: Any, few: Any, devices: int) -> None:
    alone, site = Site(build, few, 1, loss=varied), Site(build, few, devices, loss=varied)
    alone.finish()
    site.finish()
    assert alone.most_at_once == 1
    assert site.most_at_once == devices
    assert len(set(site.plans())) == len(site.plans())
    assert site.now_s < 1.5 * alone.now_s / devices + 2 * TRAINING_S


def test_one_probe_runs_at_a_time_until_something_fits(build: Any, few: Any) -> None:
    site = Site(build, few, 4)
    step = next_step(few, [], LIMITS, BALANCED)
    assert isinstance(step, RunTrial)
    site.start(step.plan)
    assert site.beside() is None
    site.end_one()
    second = next_step(few, site.trials, site.spent(), BALANCED)
    assert isinstance(second, RunTrial)
    site.start(second.plan)
    assert isinstance(site.beside(), RunTrial)


def test_trainings_begin_when_the_first_probes_have_ended(build: Any, few: Any) -> None:
    site = Site(build, few, 4)
    while not any(trial.plan.rung is Rung.TRAIN for trial in site.trials):
        step = site.beside() if site.running else next_step(few, site.trials, site.spent(), BALANCED)
        if step is None:
            site.end_one()
            continue
        assert isinstance(step, RunTrial)
        is_probing = any(site.trials[number - 1].plan.rung is Rung.PROBE for _, number in site.running)
        assert step.plan.rung is Rung.PROBE or not is_probing
        site.start(step.plan)


def test_beside_a_training_other_adapters_are_trained_equally_long(build: Any, few: Any) -> None:
    site = Site(build, few, 3, loss=varied)
    while sum(trial.plan.rung is Rung.TRAIN for trial in site.trials) < 3:
        step = site.beside() if site.running else next_step(few, site.trials, site.spent(), BALANCED)
        if step is None:
            site.end_one()
        else:
            site.start(step.plan)
    trainings = [trial.plan for trial in site.trials if trial.plan.rung is Rung.TRAIN]
    assert len({plan.candidate.adapter for plan in trainings}) == 3
    assert len({plan.train_steps for plan in trainings}) == 1
    assert "front-runner" in trainings[0].reason
    assert "front-runner" not in trainings[1].reason


def test_second_seeds_wait_for_what_might_be_better(build: Any, few: Any) -> None:
    site = Site(build, few, 3, loss=varied)
    begun = False
    while True:
        step = site.beside() if site.running else next_step(few, site.trials, site.spent(), BALANCED)
        if step is None:
            site.end_one()
            continue
        if not isinstance(step, RunTrial):
            break
        first_seeds = [n for _, n in site.running if site.trials[n - 1].plan.replicate == 0]
        if step.plan.replicate:
            begun = True
            assert not first_seeds
        site.start(step.plan) if len(site.running) < 3 else site.end_one()
    assert begun


def test_what_runs_is_paid_for_beforehand(build: Any, few: Any) -> None:
    limits = replace(LIMITS, budget_s=150.0)
    site = Site(build, few, 4, limits=limits, loss=varied)
    site.finish()
    spent_s = sum(trial.wall_s or 0.0 for trial in site.trials)
    assert spent_s <= limits.budget_s + 4 * TRAINING_S
    tight = Site(build, few, 4, limits=replace(LIMITS, max_trials=5), loss=varied)
    tight.finish()
    assert len(tight.trials) <= 5


def test_the_same_trials_and_the_same_running_give_the_same_answer(build: Any, few: Any) -> None:
    site = Site(build, few, 3, loss=varied)
    for _ in range(30):
        step = site.beside() if site.running else next_step(few, site.trials, site.spent(), BALANCED)
        if step is None or len(site.running) == 3:
            site.end_one()
            continue
        if not isinstance(step, RunTrial):
            break
        if site.running:
            again = next_beside(
                few, list(site.trials), site.spent(), BALANCED, running=tuple(reversed(site.ids()))
            )
            assert again == step
        site.start(step.plan)


def test_what_had_been_granted_and_does_not_run_comes_first(build: Any, few: Any) -> None:
    site = Site(build, few, 2)
    step = next_step(few, [], LIMITS, BALANCED)
    assert isinstance(step, RunTrial)
    site.start(step.plan)
    site.end_one()
    for _ in range(2):
        step = site.beside() if site.running else next_step(few, site.trials, site.spent(), BALANCED)
        assert isinstance(step, RunTrial)
        site.start(step.plan)
    left = site.trials[1]
    running = [site.trials[2].id]
    found = next_beside(few, site.trials, site.spent(), BALANCED, running=running)
    assert found == RunTrial(left.plan)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), devices=st.integers(2, 5))
def test_whatever_happens_it_ends_within_its_limits(build: Any, few: Any, seed: int, devices: int) -> None:
    rng = random.Random(seed)
    kinds = (Outcome.OK,) * 6 + (Outcome.OOM, Outcome.DIVERGED, Outcome.CRASHED)
    outcomes: dict[TrialPlan, Outcome] = {}
    site = Site(
        build,
        few,
        devices,
        limits=replace(LIMITS, budget_s=rng.uniform(50, 800), max_trials=rng.randint(1, 40)),
        wall_s=lambda plan: random.Random(f"{plan.candidate.id}{plan.replicate}{seed}").uniform(5, 30),
        outcome=lambda plan: outcomes.setdefault(plan, rng.choice(kinds)),
        loss=lambda plan: 0.2 + random.Random(f"{plan.candidate.id}{seed}").random(),
    )
    site.finish()
    assert len(set(site.plans())) == len(site.plans())
    assert len(site.trials) <= site.limits.max_trials
    assert not site.running
