"""The search spends trials where they tell most, keeps within its limits, and resumes from evidence alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.optimizer.domain import (
    OBJECTIVE_WEIGHTS,
    Candidate,
    Estimate,
    HeldoutScores,
    Level,
    Method,
    Objective,
    Outcome,
    Rung,
    Trial,
    TrialPlan,
    Weights,
)
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.priors import prior_quality
from rankwise.optimizer.search import RunTrial, SearchLimits, Stop, next_step, outline
from rankwise.optimizer.training import LOOK_AT_SEEDS_AFTER, MOST_SEEDS, SEEDS

GIB = 2**30
BALANCED = OBJECTIVE_WEIGHTS[Objective.BALANCED]
LIMITS = SearchLimits(
    memory_limit_bytes=None, max_trials=100, budget_s=600.0, spent_s=0.0, full_steps=1000, probe_s_guess=10.0
)


@dataclass
class Machine:
    """Runs plans as a scripted machine would, and keeps the trials."""

    build: object
    candidates: tuple[Candidate, ...]
    limits: SearchLimits = LIMITS
    weights: Weights = BALANCED
    outcome: Callable[[TrialPlan], Outcome] = lambda _: Outcome.OK
    speed: Callable[[Candidate], float] = lambda _: 1000.0
    memory: Callable[[Candidate], int] = lambda _: GIB
    step_s: Callable[[Candidate], float | None] = lambda _: None
    wall_s: Callable[[TrialPlan], float] = lambda _: 10.0
    loss: Callable[[TrialPlan], float] = lambda _: 0.5
    train_losses: Callable[[TrialPlan], tuple[float, ...]] = lambda _: ()
    trials: list[Trial] = field(default_factory=list)

    def ask(self) -> RunTrial | Stop:
        spent_s = sum(trial.wall_s or 0.0 for trial in self.trials)
        return next_step(self.candidates, self.trials, replace(self.limits, spent_s=spent_s), self.weights)

    def run(self, plan: TrialPlan) -> None:
        candidate = plan.candidate
        figures = {"peak_process_bytes": self.memory(candidate)}
        if plan.rung is Rung.PROBE:
            figures["tokens_per_s"] = self.speed(candidate)
            if (step_s := self.step_s(candidate)) is not None:
                figures["step_s_mean"] = step_s
        else:
            figures["heldout_loss"] = self.loss(plan)
            figures["train_losses"] = self.train_losses(plan)
        trial = self.build.trial(
            candidate,
            len(self.trials) + 1,
            rung=plan.rung,
            outcome=self.outcome(plan),
            train_steps=plan.train_steps,
            wall_s=self.wall_s(plan),
            **figures,
        )
        trained = plan.rung is Rung.TRAIN and trial.outcome is Outcome.OK
        self.trials.append(replace(trial, plan=plan, heldout=self.rows(trial) if trained else None))

    def rows(self, trial: Trial) -> HeldoutScores:
        """Rows of very different losses, the same for all candidates but for their level."""
        loss = trial.measurement.heldout_loss
        return HeldoutScores(losses=tuple(loss * share for share in (0.5, 1.0, 1.5) * 30), items=(1,) * 90)

    def finish(self) -> str:
        while isinstance(step := self.ask(), RunTrial):
            self.run(step.plan)
            assert len(self.trials) <= self.limits.max_trials
        return step.reason

    def of(self, rung: Rung) -> list[Trial]:
        return [trial for trial in self.trials if trial.plan.rung is rung]


USUAL_RATES: dict[Method, float] = {}
"""Filled in by the fixtures."""

GRID = [(8, "minimal"), (16, "minimal"), (16, "balanced"), (32, "balanced"), (16, "full")]


def few(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Seven adapters, best prior first, at three precisions, checkpointed or not: enough to search in."""

    def is_plain(candidate: Candidate) -> bool:
        adapter, level = candidate.adapter, candidate.level
        in_grid = (adapter.rank, adapter.target_set) in GRID and not (adapter.use_rslora or adapter.use_dora)
        return (
            adapter.method is Method.FULL
            or (adapter.method is Method.IA3 and adapter.target_set == "key,value,mlp_out")
            or (adapter.method is Method.LORA and in_grid)
        ) and replace(
            level, weight_dtype="", compute_dtype="", adapter_dtype="", gradient_checkpointing=False
        ) == replace(Level(), weight_dtype="", compute_dtype="", adapter_dtype="")

    return tuple(sorted(filter(is_plain, candidates), key=lambda c: -prior_quality(c.adapter)))


@pytest.fixture(scope="session")
def gpu_candidates(build):
    return few(enumerate_candidates(build.facts(hardware=build.hardware(gpus=1)), build.request()))


@pytest.fixture(scope="session")
def cpu_candidates(build):
    found = few(enumerate_candidates(build.facts(), build.request()))
    USUAL_RATES.update({candidate.adapter.method: candidate.learning_rate for candidate in found})
    return found


def test_asking_hashes_few_of_many_candidates(build, monkeypatch):
    """A key is a hash over a candidate's JSON, and there may be thousands of candidates."""
    everything = enumerate_candidates(build.facts(), build.request())
    machine = Machine(build, everything)
    while not machine.of(Rung.TRAIN):
        machine.run(machine.ask().plan)
    hashed = []
    key_of = Candidate.shape_key.fget
    monkeypatch.setattr(
        Candidate, "shape_key", property(lambda candidate: hashed.append(candidate) or key_of(candidate))
    )
    assert isinstance(machine.ask(), RunTrial)
    assert 0 < len(hashed) < len(everything) / 4


def settings_of(candidate: Candidate) -> tuple[str, str, bool, int]:
    level = candidate.level
    return level.weight_dtype, level.compute_dtype, level.gradient_checkpointing, candidate.micro_batch


def is_ia3(candidate: Candidate) -> bool:
    return candidate.adapter.method is Method.IA3


def surface(plan: TrialPlan) -> float:
    """Losses of a task whose best rates are half a decade above the usual ones, and on which IA3 fails."""
    candidate = plan.candidate
    off = math.log10(candidate.learning_rate / USUAL_RATES[candidate.adapter.method]) - 0.5
    level = 0.8 if candidate.adapter.method is Method.IA3 else 0.5 - 0.001 * (candidate.adapter.rank or 0)
    return level * (1 + 0.2 * off**2 + 5 / plan.train_steps)


def test_one_setting_is_varied_at_a_time_then_the_other_adapters_follow(build, gpu_candidates):
    machine = Machine(build, gpu_candidates, speed=lambda candidate: 100.0 * candidate.micro_batch)
    assert machine.finish().startswith("the search is complete")
    probes = machine.of(Rung.PROBE)
    assert [settings_of(trial.candidate) for trial in probes[:5]] == [
        ("float32", "bfloat16", False, 16),
        ("bfloat16", "bfloat16", False, 16),
        ("float32", "float32", False, 16),
        ("float32", "bfloat16", True, 16),
        ("float32", "bfloat16", False, 8),
    ]
    assert {trial.candidate.adapter for trial in probes[:5]} == {gpu_candidates[0].adapter}
    others = [trial.candidate for trial in probes[5:]]
    assert {settings_of(candidate) for candidate in others} == {("float32", "bfloat16", False, 16)}
    assert [c.adapter for c in others] == list(dict.fromkeys(c.adapter for c in gpu_candidates))[1:]


def test_all_train_equally_long_and_the_best_with_two_seeds_or_more(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, loss=surface)
    assert machine.finish().startswith("the search is complete")
    trainings = machine.of(Rung.TRAIN)
    (steps,) = {trial.plan.train_steps for trial in trainings}
    assert {trial.plan.goal_steps for trial in trainings} == {steps}
    first = [trial for trial in trainings if trial.plan.replicate == 0]
    assert len({trial.candidate.adapter for trial in first}) == 7
    replicates = [trial.plan.replicate for trial in trainings]
    assert max(replicates) >= SEEDS - 1
    assert set(replicates) == set(range(max(replicates) + 1))
    assert replicates[:LOOK_AT_SEEDS_AFTER] == [0] * LOOK_AT_SEEDS_AFTER
    look, *later = replicates[LOOK_AT_SEEDS_AFTER:]
    assert look == 1, "the best of the first few is repeated, to see what seeds do"
    assert later == sorted(later), "they do nothing: nobody gets a first training once two have second seeds"
    repeated = {trial.candidate for trial in trainings if trial.plan.replicate}
    assert 2 <= len(repeated) <= 3
    best = min(first, key=lambda trial: surface(trial.plan)).candidate
    assert best in repeated


def noisy(plan: TrialPlan) -> float:
    """As :func:`surface`, with seeds that move the loss by 15 %."""
    chance = random.Random(f"{plan.candidate.id}/{plan.replicate}")
    return surface(plan) * (1 + 0.15 * chance.gauss(0.0, 1.0))


def test_where_seeds_matter_what_looks_best_is_repeated_before_more_is_built_on_it(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, loss=noisy)
    machine.finish()
    trainings = machine.of(Rung.TRAIN)
    look = next(number for number, trial in enumerate(trainings) if trial.plan.replicate)
    assert look == LOOK_AT_SEEDS_AFTER
    assert trainings[look].plan.reason == "another seed, to see what seeds do"
    later = [trial.plan for trial in trainings[look + 1 :]]
    repeats = [plan for plan in later if "since seeds move the loss by" in plan.reason]
    assert repeats
    place = later.index(repeats[0])
    assert any(plan.replicate == 0 for plan in later[place:]), "other rates and adapters follow all the same"
    means: dict[Candidate, list[float]] = {}
    for trial in trainings:
        means.setdefault(trial.candidate, []).append(trial.measurement.heldout_loss)
    best = min(means, key=lambda candidate: sum(means[candidate]) / len(means[candidate]))
    assert len(means[best]) >= SEEDS


@pytest.mark.parametrize("luck", [1.2, 1.0], ids=["seeds matter", "seeds do nothing"])
def test_where_seeds_matter_one_unlucky_loss_does_not_close_a_side(build, cpu_candidates, luck):
    """The usual rate's first seed is unlucky, so that the rate above it looks best, with both sides known."""
    usual = cpu_candidates[0]
    off_by = {0: 1.12, 1: 1.0, 2: 1.3}

    def loss(plan: TrialPlan) -> float:
        off = round(2 * math.log10(plan.candidate.learning_rate / usual.learning_rate))
        return off_by.get(off, 0.9) * (luck if plan.replicate % 2 else 1.0)

    machine = Machine(build, [c for c in cpu_candidates if c.adapter == usual.adapter], loss=loss)
    machine.finish()
    rates = {trial.candidate.learning_rate for trial in machine.of(Rung.TRAIN)}
    assert any(rate < usual.learning_rate for rate in rates) == (luck > 1.0)


def test_rates_are_climbed_uphill_until_it_gets_worse(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, loss=surface)
    machine.finish()
    usual = {candidate.adapter: candidate.learning_rate for candidate in cpu_candidates}
    trainings = machine.of(Rung.TRAIN)
    best = min(trainings, key=lambda trial: surface(trial.plan)).candidate
    assert best.learning_rate == pytest.approx(usual[best.adapter] * 10**0.5, rel=0.05)
    own = [t for t in trainings if t.candidate.adapter == best.adapter and t.plan.replicate == 0]
    ratios = [trial.candidate.learning_rate / usual[best.adapter] for trial in own]
    assert [round(2 * math.log10(ratio)) for ratio in ratios] == [0, 1, 2], "the usual one is the lower side"
    assert own[1].plan.reason.startswith(f"a higher rate than {usual[best.adapter]:g}, ")


def test_an_adapter_far_behind_is_left_at_one_rate(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, loss=surface, limits=replace(LIMITS, budget_s=1e5))
    machine.finish()
    rates = {t.candidate.learning_rate for t in machine.of(Rung.TRAIN) if is_ia3(t.candidate)}
    assert len(rates) == 1, "60 % behind"


def test_of_what_promises_alike_the_cheaper_is_trained_first(build, cpu_candidates):
    def step_s(candidate: Candidate) -> float:
        return 0.001 if is_ia3(candidate) else 0.5

    def others_before_ia3(step_s: Callable[[Candidate], float]) -> int:
        limits = replace(LIMITS, quality_first=False, full_steps=100)  # so all are probed before
        machine = Machine(build, cpu_candidates, step_s=step_s, limits=limits, loss=surface)
        machine.finish()
        adapters = dict.fromkeys(trial.candidate.adapter for trial in machine.of(Rung.TRAIN))
        return [adapter.method for adapter in adapters].index(Method.IA3)

    assert others_before_ia3(lambda _: 0.5) == 6
    assert others_before_ia3(step_s) == 0


def test_few_adapters_are_probed_before_the_first_training_and_others_before_their_own(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, loss=surface)
    machine.finish()
    begun = machine.of(Rung.TRAIN)[0].number
    assert len({t.candidate.adapter for t in machine.of(Rung.PROBE) if t.number < begun}) == 3
    late = [trial for trial in machine.of(Rung.PROBE) if trial.number > begun]
    assert len(late) == 4
    for probe in late:
        following = machine.trials[probe.number]
        assert (following.plan.rung, following.candidate) == (Rung.TRAIN, probe.candidate)


def test_where_speed_comes_first_all_are_probed_before_the_first_training(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, limits=replace(LIMITS, quality_first=False), loss=surface)
    machine.finish()
    begun = machine.of(Rung.TRAIN)[0].number
    assert all(trial.number < begun for trial in machine.of(Rung.PROBE))


def test_other_adapters_try_a_larger_micro_batch_where_the_first_took_a_smaller(build, cpu_candidates):
    first, second = list(dict.fromkeys(candidate.adapter for candidate in cpu_candidates))[:2]

    def speed(candidate: Candidate) -> float:
        return 1000.0 + (30.0 if candidate.adapter == second else -30.0) * candidate.micro_batch

    machine = Machine(build, cpu_candidates, speed=speed, loss=surface)
    machine.finish()
    batches = {
        adapter: [t.candidate.micro_batch for t in machine.of(Rung.PROBE) if t.candidate.adapter == adapter]
        for adapter in (first, second)
    }
    smallest = min(batches[first])
    assert batches[second] == [smallest, 2 * smallest]
    trained = {t.candidate.micro_batch for t in machine.of(Rung.TRAIN) if t.candidate.adapter == second}
    assert trained == {2 * smallest}


def test_a_short_training_is_never_shortened(build, cpu_candidates):
    machine = Machine(
        build, cpu_candidates, loss=surface, limits=replace(LIMITS, budget_s=1e5, full_steps=30)
    )
    machine.finish()
    trainings = machine.of(Rung.TRAIN)
    assert {trial.plan.train_steps for trial in trainings} == {30}
    rates = {t.candidate.learning_rate for t in trainings if t.candidate.adapter == cpu_candidates[0].adapter}
    assert len(rates) >= 3
    assert max(trial.plan.replicate for trial in trainings) >= SEEDS - 1


def test_a_rate_that_diverges_is_lowered_and_higher_ones_are_not_tried(build, cpu_candidates):
    usual = {candidate.adapter: candidate.learning_rate for candidate in cpu_candidates}

    def outcome(plan: TrialPlan) -> Outcome:
        too_high = plan.candidate.learning_rate > 0.5 * usual[plan.candidate.adapter]
        return Outcome.DIVERGED if plan.rung is Rung.TRAIN and too_high else Outcome.OK

    machine = Machine(build, cpu_candidates, outcome=outcome)
    machine.finish()
    by_adapter: dict[object, list[Trial]] = {}
    for trial in machine.of(Rung.TRAIN):
        by_adapter.setdefault(trial.candidate.adapter, []).append(trial)
    assert len(by_adapter) == 7
    for adapter, own in by_adapter.items():
        assert own[1].candidate.learning_rate == pytest.approx(usual[adapter] / 10**0.5, rel=0.05)
        assert own[1].plan.reason == f"a lower rate, because it diverged at {usual[adapter]:g}"
        assert all(trial.outcome is Outcome.OK for trial in own[1:]), "nor is a higher one tried again"


def test_a_plateau_asks_for_more_capacity(build, cpu_candidates):
    low = [c for c in cpu_candidates if c.adapter.rank == 8]
    high = [c for c in cpu_candidates if c.adapter.rank == 16]
    # More adapters than are probed unasked stand between the two.
    crowd = [
        replace(c, adapter=replace(c.adapter, dropout=0.3 + share / 100)) for share in range(9) for c in low
    ]
    machine = Machine(
        build, (*low, *crowd, *high), loss=surface, train_losses=lambda _: (2.0, 1.0) * 20 + (0.5, 0.6) * 20
    )
    machine.limits = replace(LIMITS, budget_s=1e5, full_steps=160)
    machine.finish()
    moves = [
        t for t in machine.trials if t.plan.reason.startswith("more capacity, because the loss of trial")
    ]
    assert [trial.plan.rung for trial in moves] == [Rung.PROBE, Rung.TRAIN]
    assert {trial.candidate.adapter.rank for trial in moves} == {16}


def test_a_loss_that_jumps_asks_for_less_alpha(build, cpu_candidates):
    jumps = (*[1.0] * 30, 9.0, 1.0, 8.0, *[1.0] * 7)
    lora = tuple(c for c in cpu_candidates if c.adapter.method is Method.LORA)
    machine = Machine(build, lora, loss=surface, train_losses=lambda _: jumps)
    machine.finish()
    moves = [t for t in machine.trials if t.plan.reason.startswith("less alpha, because the loss of trial")]
    assert 1 <= len({move.candidate.adapter for move in moves}) <= 2
    for adapter in (move.candidate.adapter for move in moves):
        assert replace(adapter, alpha=2 * adapter.alpha) in {
            trial.candidate.adapter for trial in machine.trials
        }


def test_seeds_are_added_while_finalists_cannot_be_told_apart(build, cpu_candidates):
    def noisy(plan: TrialPlan) -> float:
        chance = random.Random(f"{plan.candidate.id}/{plan.replicate}")
        return surface(plan) * (1 + chance.gauss(0.0, 0.05))

    machine = Machine(build, cpu_candidates, loss=noisy, limits=replace(LIMITS, budget_s=1e5, full_steps=100))
    assert "more time would allow more seeds" in machine.finish()
    assert max(trial.plan.replicate for trial in machine.of(Rung.TRAIN)) == MOST_SEEDS - 1
    machine = Machine(build, cpu_candidates, loss=surface, limits=replace(LIMITS, budget_s=1e5))
    assert "more time would not change the answer" in machine.finish()
    assert max(trial.plan.replicate for trial in machine.of(Rung.TRAIN)) < MOST_SEEDS - 1


def test_faster_settings_are_kept(build, gpu_candidates):
    def speed(candidate: Candidate) -> float:
        return {2: 4000.0, 4: 3000.0, 8: 2000.0, 16: 1000.0}[candidate.micro_batch] + (
            500.0 if candidate.level.weight_dtype == "bfloat16" else 0.0
        )

    machine = Machine(build, gpu_candidates, speed=speed)
    machine.finish()
    lora = [t.candidate for t in machine.of(Rung.TRAIN) if t.candidate.adapter.method is Method.LORA]
    assert {settings_of(candidate)[:3] for candidate in lora} == {("bfloat16", "bfloat16", False)}
    assert {candidate.micro_batch for candidate in lora} <= {4, 2}


def test_an_objective_of_memory_takes_the_leaner_settings(build, cpu_candidates):
    def memory(candidate: Candidate) -> int:
        return GIB + candidate.micro_batch * GIB // (4 if candidate.level.gradient_checkpointing else 1)

    def speed(candidate: Candidate) -> float:
        return 700.0 if candidate.level.gradient_checkpointing else 1000.0

    def chosen(objective: Objective) -> set[tuple[str, str, bool, int]]:
        machine = Machine(
            build, cpu_candidates, memory=memory, speed=speed, weights=OBJECTIVE_WEIGHTS[objective]
        )
        machine.finish()
        return {settings_of(trial.candidate) for trial in machine.of(Rung.TRAIN)}

    assert chosen(Objective.MEMORY) == {("float32", "float32", True, 2)}
    assert {settings[2] for settings in chosen(Objective.SPEED)} == {False}


def test_memory_settings_escalate_on_oom_with_the_leanest_second(build, cpu_candidates):
    def outcome(plan: TrialPlan) -> Outcome:
        fits = plan.candidate.level.gradient_checkpointing and plan.candidate.micro_batch <= 4
        return Outcome.OK if fits else Outcome.OOM

    machine = Machine(build, cpu_candidates, outcome=outcome)
    machine.finish()
    first = [settings_of(trial.candidate)[2:] for trial in machine.of(Rung.PROBE)]
    assert first[:8] == [
        (False, 16),
        (True, 2),
        (False, 8),
        (False, 4),
        (False, 2),
        (True, 16),
        (True, 8),
        (True, 4),
    ]


def test_a_precision_that_cannot_fit_costs_two_probes(build, gpu_candidates):
    def outcome(plan: TrialPlan) -> Outcome:
        return Outcome.OK if plan.candidate.level.weight_dtype == "bfloat16" else Outcome.OOM

    machine = Machine(build, gpu_candidates, outcome=outcome)
    machine.finish()
    probes = [settings_of(trial.candidate) for trial in machine.of(Rung.PROBE)]
    assert probes[:3] == [
        ("float32", "bfloat16", False, 16),
        ("float32", "bfloat16", True, 2),
        ("bfloat16", "bfloat16", False, 16),
    ]
    assert all(trial.candidate.adapter.method is not Method.FULL for trial in machine.of(Rung.TRAIN))


def test_memory_over_the_limit_counts_as_oom(build, cpu_candidates):
    limits = replace(LIMITS, memory_limit_bytes=8 * GIB)
    machine = Machine(build, cpu_candidates, limits=limits, memory=lambda c: c.micro_batch * GIB)
    machine.finish()
    assert {trial.candidate.micro_batch for trial in machine.of(Rung.TRAIN)} <= {2, 4, 8}
    assert [t.candidate.micro_batch for t in machine.of(Rung.PROBE)][:3] == [16, 2, 8]


def test_what_cannot_fit_is_never_run_and_the_largest_that_may_comes_first(build, cpu_candidates):
    first, too_large = cpu_candidates[0], Estimate(device="cpu", fits=Fits.NO)
    hopeless = [c for c in cpu_candidates if c.level == first.level and c.adapter == first.adapter][:2]
    step = next_step(cpu_candidates, [], LIMITS, BALANCED, estimates=dict.fromkeys(hopeless, too_large))
    assert isinstance(step, RunTrial)
    chosen = step.plan.candidate
    assert (chosen.adapter, chosen.level) == (first.adapter, first.level)
    assert chosen.micro_batch == first.micro_batch // 4
    # A smaller one that cannot fit rules out all larger ones, and the first rung with checkpointing follows.
    smallest = replace(first, micro_batch=1)
    step = next_step(cpu_candidates, [], LIMITS, BALANCED, estimates={smallest: too_large})
    assert isinstance(step, RunTrial)
    chosen = step.plan.candidate
    assert chosen.level == replace(first.level, gradient_checkpointing=True)


def test_other_failures_are_not_repeated_at_smaller_batches(build, cpu_candidates):
    machine = Machine(
        build,
        cpu_candidates,
        outcome=lambda p: Outcome.OK if p.candidate.adapter.method is Method.IA3 else Outcome.CRASHED,
    )
    machine.finish()
    crashed = [trial.candidate.adapter for trial in machine.trials if trial.outcome is Outcome.CRASHED]
    assert len(crashed) == len(set(crashed)) == 6
    assert {trial.candidate.adapter.method for trial in machine.of(Rung.TRAIN)} == {Method.IA3}


def test_nothing_fits(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, outcome=lambda _: Outcome.OOM)
    assert machine.finish() == "nothing fits: no probe ran to its end within the memory that there is"
    assert not machine.of(Rung.TRAIN)


@pytest.mark.parametrize("failure", [Outcome.OOM, Outcome.INVALID, Outcome.LOST])
def test_an_adapter_whose_training_fails_is_left_and_the_others_go_on(build, cpu_candidates, failure):
    failing = cpu_candidates[0].adapter

    def outcome(plan: TrialPlan) -> Outcome:
        fails = plan.rung is Rung.TRAIN and plan.candidate.adapter == failing
        return failure if fails else Outcome.OK

    machine = Machine(build, cpu_candidates, outcome=outcome, loss=surface)
    assert machine.finish().startswith("the search is complete")
    trainings = machine.of(Rung.TRAIN)
    failed = [t.candidate.shape_key for t in trainings if t.candidate.adapter == failing]
    assert len(failed) == len(set(failed)), "only what may need less memory is tried again"
    assert len(failed) == 1 or failure is Outcome.OOM
    assert len({trial.candidate.adapter for trial in trainings}) == 7
    assert max(trial.plan.replicate for trial in trainings) >= SEEDS - 1


def test_an_unfinished_trial_comes_first_whatever_the_limits(build, cpu_candidates):
    done = build.trial(cpu_candidates[0], 1)
    queued = build.trial(cpu_candidates[1], 2, outcome=None)
    spent = replace(LIMITS, max_trials=1, spent_s=1e6)
    assert next_step(cpu_candidates, [done, queued], spent, BALANCED) == RunTrial(queued.plan)


def test_the_budget_is_kept_to_within_one_trial(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, limits=replace(LIMITS, budget_s=100.0), wall_s=lambda _: 30.0)
    assert "budget" in machine.finish()
    assert 3 <= len(machine.trials) <= 4
    assert machine.of(Rung.TRAIN), "probes leave time for training"


def test_the_limit_on_trials_keeps_some_for_training(build, cpu_candidates):
    for max_trials in range(1, 30):
        machine = Machine(build, cpu_candidates, limits=replace(LIMITS, max_trials=max_trials), loss=surface)
        machine.finish()
        assert len(machine.trials) <= max_trials
        assert len(machine.of(Rung.TRAIN)) >= min(12, max_trials // 2 - 1)


def test_few_trials_are_spent_on_different_adapters(build, gpu_candidates):
    machine = Machine(build, gpu_candidates, limits=replace(LIMITS, max_trials=6))
    machine.finish()
    assert len({trial.candidate.adapter for trial in machine.of(Rung.PROBE)}) >= 2


@pytest.mark.parametrize(
    ("budget_s", "full_steps", "expected"),
    [(1e6, 70, 70), (1e6, 10, 10), (61.0, 1000, 31), (600.0, 1000, 125), (1200.0, 1000, 250)],
)
def test_lengths_follow_from_the_time_left(build, cpu_candidates, budget_s, full_steps, expected):
    """Half, a quarter, … of the whole training: what leaves time for adapters, rates and two seeds."""
    machine = Machine(
        build,
        cpu_candidates,
        limits=replace(LIMITS, budget_s=budget_s, full_steps=full_steps),
        loss=surface,
        wall_s=lambda plan: 5.0 + (5.0 if plan.rung is Rung.PROBE else 0.5 * plan.train_steps),
    )
    machine.finish()
    trainings = machine.of(Rung.TRAIN)
    assert {trial.plan.goal_steps for trial in trainings} == {expected}
    if budget_s > 61.0:
        finals = [trial for trial in trainings if trial.plan.train_steps == expected]
        assert len({trial.candidate for trial in finals}) >= 2
        assert {trial.plan.replicate for trial in finals} >= {0, 1}


def test_a_level_once_left_is_not_refined_again_when_time_turns_up(build, gpu_candidates):
    machine = Machine(build, gpu_candidates)
    machine.wall_s = lambda _: 120.0 if not machine.trials else 1.0
    machine.finish()
    adapters = [trial.candidate.adapter for trial in machine.of(Rung.PROBE)]
    assert len([adapter for adapter, _ in groupby(adapters)]) == len(set(adapters)) == 7


def test_outline_bounds_what_is_run(build, cpu_candidates):
    plan = outline(cpu_candidates, LIMITS)
    machine = Machine(build, cpu_candidates)
    machine.finish()
    assert plan.candidates == len(cpu_candidates)
    assert plan.adapters == 7
    assert len(machine.of(Rung.PROBE)) <= plan.max_probes
    assert len(machine.of(Rung.TRAIN)) <= plan.max_trainings
    assert plan.max_trials_s == 600.0


def needs_at_least(candidate: Candidate, other: Candidate) -> bool:
    plain = {"gradient_checkpointing": False}
    return (
        candidate.adapter == other.adapter
        and replace(candidate.level, **plain) == replace(other.level, **plain)
        and candidate.micro_batch >= other.micro_batch
        and (other.level.gradient_checkpointing or not candidate.level.gradient_checkpointing)
    )


ANY_OUTCOME = st.sampled_from([Outcome.OK] * 6 + [o for o in Outcome if o is not Outcome.OK])


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_happens_the_search_ends_and_never_repeats(build, gpu_candidates, spread, data):
    weights = Weights(
        **{name: data.draw(st.sampled_from([0.0, 0.5, 1.0])) for name in ("speed", "memory", "quality")}
    )
    limits = replace(
        LIMITS,
        max_trials=data.draw(st.integers(1, 60)),
        budget_s=data.draw(st.sampled_from([50.0, 300.0, 1e5])),
        memory_limit_bytes=data.draw(st.sampled_from([None, 4 * GIB])),
    )
    machine = Machine(
        build,
        data.draw(st.sampled_from([gpu_candidates, spread])),
        limits=limits,
        weights=weights,
        outcome=lambda _: data.draw(ANY_OUTCOME),
        speed=lambda _: data.draw(st.floats(1.0, 1e4)),
        memory=lambda _: data.draw(st.integers(1, 8 * GIB)),
        loss=lambda _: data.draw(st.floats(0.0, 10.0)),
        wall_s=lambda _: data.draw(st.sampled_from([1.0, 10.0, 60.0])),
    )
    while isinstance(step := machine.ask(), RunTrial):
        assert machine.ask() == step
        plan = step.plan
        done = {(t.candidate.id, t.plan.train_steps, t.plan.replicate) for t in machine.trials}
        assert (plan.candidate.id, plan.train_steps, plan.replicate) not in done
        if plan.rung is Rung.PROBE:
            assert plan.candidate.shape_key not in {t.candidate.shape_key for t in machine.of(Rung.PROBE)}
        for trial in machine.trials:
            too_big = trial.outcome in (Outcome.OOM, Outcome.HOST_OOM) or (
                limits.memory_limit_bytes is not None
                and trial.measurement is not None
                and trial.measurement.memory_bytes > limits.memory_limit_bytes
            )
            assert not (too_big and needs_at_least(plan.candidate, trial.candidate))
        assert (plan.train_steps >= 1) == (plan.rung is Rung.TRAIN)
        machine.run(plan)
    assert len(machine.trials) <= limits.max_trials
    assert sum(trial.wall_s for trial in machine.trials[:-1]) < limits.budget_s
    probed = [adapter for adapter, _ in groupby(t.candidate.adapter for t in machine.of(Rung.PROBE))]
    assert len(probed) == len(set(probed)), "the search never goes back to an adapter"
    lengths = [trial.plan.train_steps for trial in machine.of(Rung.TRAIN)]
    assert lengths == sorted(lengths)


def test_random_weights_are_probed_for_the_whole_budget_and_never_trained(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, limits=replace(LIMITS, can_learn=False, max_trials=5))
    assert machine.finish() == "the limit of 5 trials was reached"
    assert len(machine.of(Rung.PROBE)) == 5
    machine = Machine(build, cpu_candidates[:4], limits=replace(LIMITS, can_learn=False, max_trials=500))
    assert "without the model's weights" in machine.finish()


def test_reused_measurements_count_against_no_limit(build, cpu_candidates):
    first = Machine(build, cpu_candidates)
    first.finish()
    again = Machine(build, cpu_candidates, limits=replace(LIMITS, max_trials=3))
    probes = [replace(trial, reused_from=trial.id, wall_s=0.0) for trial in first.of(Rung.PROBE)]
    again.trials = probes
    step = again.ask()
    assert isinstance(step, RunTrial)
    assert step.plan.rung is Rung.TRAIN


@pytest.fixture(scope="module")
def spread(build) -> tuple[Candidate, ...]:
    """One LoRA on two GPUs: DDP, ZeRO-3 and both FSDPs beside one process."""
    hardware = build.hardware(gpus=2, libraries=("deepspeed",))
    facts = build.facts(model=build.bert(hidden=2048), hardware=hardware)
    found = enumerate_candidates(facts, build.request())
    usual = Level()
    return tuple(
        candidate
        for candidate in found
        if candidate.adapter == found[0].adapter
        and (candidate.level.optimizer, candidate.level.compile) == (usual.optimizer, usual.compile)
    )


@pytest.mark.parametrize(
    ("speeds", "too_big", "chosen"),
    [
        ({"": 1.0, "DDP": 1.9, "ZeRO-3": 1.5, "FSDP1": 1.6, "FSDP2": 1.7}, (), "DDP"),
        ({"": 1.0, "DDP": 1.9, "ZeRO-3": 2.1, "FSDP1": 1.6, "FSDP2": 1.7}, (), "ZeRO-3"),
        ({"": 1.0, "DDP": 0.7, "ZeRO-3": 0.5, "FSDP1": 0.6, "FSDP2": 0.6}, (), ""),
        ({"": 1.0, "DDP": 1.9, "ZeRO-3": 1.5, "FSDP1": 1.6, "FSDP2": 1.7}, ("", "DDP"), "FSDP2"),
    ],
)
def test_the_fastest_way_to_spread_is_found(build, spread, speeds, too_big, chosen):
    def outcome(plan):
        return Outcome.OOM if plan.candidate.level.sharding in too_big else Outcome.OK

    machine = Machine(
        build,
        spread,
        limits=replace(LIMITS, can_learn=False),
        outcome=outcome,
        speed=lambda candidate: 1000 * speeds[candidate.level.sharding],
    )
    machine.finish()
    ran = [trial for trial in machine.trials if trial.outcome is Outcome.OK]
    fastest = max(ran, key=lambda trial: trial.measurement.tokens_per_s)
    assert fastest.candidate.level.sharding == chosen
