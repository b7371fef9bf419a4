"""The search spends trials where they tell most, keeps within its limits, and resumes from evidence alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.optimizer.domain import (
    OBJECTIVE_WEIGHTS,
    Candidate,
    Level,
    Method,
    Objective,
    Outcome,
    Rung,
    Trial,
    TrialPlan,
    Weights,
)
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.priors import prior_quality
from rankwise.optimizer.search import (
    FINALISTS,
    MIN_TRAIN_STEPS,
    RunTrial,
    SearchLimits,
    Stop,
    next_step,
    outline,
)

GIB = 2**30
BALANCED = OBJECTIVE_WEIGHTS[Objective.BALANCED]
LIMITS = SearchLimits(
    memory_limit_bytes=None, max_trials=16, budget_s=600.0, spent_s=0.0, full_steps=1000, probe_s_guess=10.0
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
    wall_s: Callable[[TrialPlan], float] = lambda _: 10.0
    trials: list[Trial] = field(default_factory=list)

    def ask(self) -> RunTrial | Stop:
        spent_s = sum(trial.wall_s or 0.0 for trial in self.trials)
        return next_step(self.candidates, self.trials, replace(self.limits, spent_s=spent_s), self.weights)

    def run(self, plan: TrialPlan) -> None:
        candidate = plan.candidate
        figures = {"peak_process_bytes": self.memory(candidate)}
        if plan.rung is Rung.PROBE:
            figures["tokens_per_s"] = self.speed(candidate)
        trial = self.build.trial(
            candidate,
            len(self.trials) + 1,
            rung=plan.rung,
            outcome=self.outcome(plan),
            train_steps=plan.train_steps,
            wall_s=self.wall_s(plan),
            **figures,
        )
        self.trials.append(replace(trial, plan=plan))

    def finish(self) -> str:
        while isinstance(step := self.ask(), RunTrial):
            self.run(step.plan)
            assert len(self.trials) <= self.limits.max_trials
        return step.reason

    def of(self, rung: Rung) -> list[Trial]:
        return [trial for trial in self.trials if trial.plan.rung is rung]


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
    return few(enumerate_candidates(build.facts(), build.request()))


def settings_of(candidate: Candidate) -> tuple[str, str, bool, int]:
    level = candidate.level
    return level.weight_dtype, level.compute_dtype, level.gradient_checkpointing, candidate.micro_batch


def test_one_setting_is_varied_at_a_time_then_the_other_adapters_follow(build, gpu_candidates):
    machine = Machine(build, gpu_candidates)
    assert machine.finish() == "the search is complete"
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


def test_front_runners_of_different_adapters_train_on_equal_steps(build, cpu_candidates):
    machine = Machine(build, cpu_candidates)
    machine.finish()
    trainings = machine.of(Rung.TRAIN)
    assert len({trial.candidate.adapter for trial in trainings}) == len(trainings) == FINALISTS
    assert len({trial.plan.train_steps for trial in trainings}) == 1
    assert len({trial.candidate.recipe.effective_batch for trial in trainings}) == 1
    probed = {trial.candidate.id for trial in machine.of(Rung.PROBE)}
    assert all(trial.candidate.id in probed for trial in trainings)
    assert machine.trials.index(trainings[0]) == len(machine.trials) - FINALISTS


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
    first = cpu_candidates[0]
    hopeless = [c for c in cpu_candidates if c.level == first.level and c.adapter == first.adapter][:2]
    step = next_step(cpu_candidates, [], LIMITS, BALANCED, cannot_fit=hopeless)
    assert isinstance(step, RunTrial)
    chosen = step.plan.candidate
    assert (chosen.adapter, chosen.level) == (first.adapter, first.level)
    assert chosen.micro_batch == first.micro_batch // 4
    # A smaller one that cannot fit rules out all larger ones, and the first rung with checkpointing follows.
    smallest = replace(first, micro_batch=1)
    step = next_step(cpu_candidates, [], LIMITS, BALANCED, cannot_fit=[smallest])
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
    assert [trial.candidate.adapter.method for trial in machine.of(Rung.TRAIN)] == [Method.IA3]


def test_nothing_fits(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, outcome=lambda _: Outcome.OOM)
    assert machine.finish() == "nothing fits: no probe ran to its end within the memory that there is"
    assert not machine.of(Rung.TRAIN)


@pytest.mark.parametrize("failure", [Outcome.DIVERGED, Outcome.OOM, Outcome.INVALID, Outcome.LOST])
def test_a_finalist_that_fails_is_replaced_by_the_next_adapter(build, cpu_candidates, failure):
    failed: list[str] = []

    def outcome(plan: TrialPlan) -> Outcome:
        if plan.rung is Rung.TRAIN and (not failed or failed == [plan.candidate.id]):
            failed[:] = [plan.candidate.id]
            return failure
        return Outcome.OK

    machine = Machine(build, cpu_candidates, outcome=outcome)
    assert machine.finish() == "the search is complete"
    trainings = machine.of(Rung.TRAIN)
    assert [trial.outcome for trial in trainings] == [failure, Outcome.OK, Outcome.OK, Outcome.OK]
    assert len({trial.candidate.adapter for trial in trainings}) == 4


def test_an_unfinished_trial_comes_first_whatever_the_limits(build, cpu_candidates):
    done = build.trial(cpu_candidates[0], 1)
    queued = build.trial(cpu_candidates[1], 2, outcome=None)
    spent = replace(LIMITS, max_trials=1, spent_s=1e6)
    assert next_step(cpu_candidates, [done, queued], spent, BALANCED) == RunTrial(queued.plan)


def test_the_budget_is_kept_to_within_one_trial(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, limits=replace(LIMITS, budget_s=100.0), wall_s=lambda _: 30.0)
    assert machine.finish() == "the budget of 1.67 minutes was spent"
    assert len(machine.trials) == 4
    assert machine.of(Rung.TRAIN), "probes leave time for training"


def test_the_limit_on_trials_keeps_some_for_training(build, cpu_candidates):
    for max_trials in range(1, 9):
        machine = Machine(build, cpu_candidates, limits=replace(LIMITS, max_trials=max_trials))
        reason = machine.finish()
        assert len(machine.trials) == max_trials
        assert reason == f"the limit of {max_trials} trials was reached"
        assert len(machine.of(Rung.TRAIN)) == min(FINALISTS, max_trials // 2)


def test_few_trials_are_spent_on_different_adapters(build, gpu_candidates):
    machine = Machine(build, gpu_candidates, limits=replace(LIMITS, max_trials=6))
    machine.finish()
    assert len({trial.candidate.adapter for trial in machine.of(Rung.PROBE)}) >= 2


@pytest.mark.parametrize(
    ("budget_s", "full_steps", "expected"),
    [
        (1e5, 70, 70),
        (1e5, 10, 10),
        (61.0, 1000, MIN_TRAIN_STEPS),
        # 9 probes of 10 s leave 510 s for 3 finalists; 5 s of each go to starting, 80 % of the rest to steps
        (600.0, 1000, int((510 / 3 - 5) * 0.8 / 0.5)),
    ],
)
def test_train_steps_follow_from_the_time_left(build, cpu_candidates, budget_s, full_steps, expected):
    machine = Machine(build, cpu_candidates, limits=replace(LIMITS, budget_s=budget_s, full_steps=full_steps))
    machine.finish()
    assert {trial.plan.train_steps for trial in machine.of(Rung.TRAIN)} == {expected}


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


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_happens_the_search_ends_and_never_repeats(build, gpu_candidates, data):
    weights = Weights(
        **{name: data.draw(st.sampled_from([0.0, 0.5, 1.0])) for name in ("speed", "memory", "quality")}
    )
    limits = replace(
        LIMITS,
        max_trials=data.draw(st.integers(1, 20)),
        budget_s=data.draw(st.sampled_from([50.0, 300.0, 1e5])),
        memory_limit_bytes=data.draw(st.sampled_from([None, 4 * GIB])),
    )
    machine = Machine(
        build,
        gpu_candidates,
        limits=limits,
        weights=weights,
        outcome=lambda _: data.draw(ANY_OUTCOME),
        speed=lambda _: data.draw(st.floats(1.0, 1e4)),
        memory=lambda _: data.draw(st.integers(1, 8 * GIB)),
        wall_s=lambda _: data.draw(st.sampled_from([1.0, 10.0, 60.0])),
    )
    while isinstance(step := machine.ask(), RunTrial):
        assert machine.ask() == step
        plan = step.plan
        assert (plan.candidate.id, plan.rung) not in {(t.candidate.id, t.plan.rung) for t in machine.trials}
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
    rungs = [trial.plan.rung for trial in machine.trials]
    assert rungs == sorted(rungs, key=[Rung.PROBE, Rung.TRAIN].index)


def test_random_weights_are_probed_for_the_whole_budget_and_never_trained(build, cpu_candidates):
    machine = Machine(build, cpu_candidates, limits=replace(LIMITS, can_learn=False, max_trials=5))
    assert machine.finish() == "the limit of 5 trials was reached"
    assert len(machine.of(Rung.PROBE)) == 5
    machine = Machine(build, cpu_candidates[:4], limits=replace(LIMITS, can_learn=False, max_trials=500))
    assert "without the model's weights" in machine.finish()


def test_reused_measurements_count_against_no_limit(build, cpu_candidates):
    first = Machine(build, cpu_candidates)
    first.finish()
    again = Machine(build, cpu_candidates, limits=replace(LIMITS, max_trials=FINALISTS))
    probes = [replace(trial, reused_from=trial.id, wall_s=0.0) for trial in first.of(Rung.PROBE)]
    again.trials = probes
    step = again.ask()
    assert isinstance(step, RunTrial)
    assert step.plan.rung is Rung.TRAIN
