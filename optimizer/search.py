"""Which trial next, and when to stop: a search that remembers nothing but the stored trials.

Asked with the same trials it gives the same answer, so an interrupted study goes on where it stood. First
the speed (:mod:`.probing`), then what is learnt (:mod:`.training`). Knows nothing of devices, processes or
clocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .baseline import REASON, before
from .domain import Adapter, Candidate, Estimate, Rung, Trial, TrialPlan, TrialState, Weights
from .evidence import Evidence
from .probing import ADAPTERS, FIRST_ADAPTERS, next_probe
from .promise import Arm
from .training import FINALISTS, MOST_SEEDS, SEEDS, Room, Training

PROBE_BUDGET_SHARE = 0.35
"""Part of the budget that probes may spend; training gets the rest."""

LEAST_TRAININGS = 12
"""Trials that are kept for training: a few adapters, a few rates, two finalists with two seeds each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """What a search may spend, and how far it has got."""

    memory_limit_bytes: int | None
    max_trials: int
    budget_s: float
    spent_s: float
    full_steps: int
    """Optimizer steps of the user's whole training."""
    can_learn: bool = True
    """False where weights are random: then speed and memory are all that can be measured."""
    probe_s_guess: float = 30.0
    """Wall time of a probe, until one has been measured."""
    finish_limit_s: float | None = None
    """What would train longer than this is not trained at all, if anything else is left."""
    quality_first: bool = True
    """What learns less is not recommended, however fast it is."""


@dataclass(frozen=True, slots=True)
class RunTrial:
    """Run this next."""

    plan: TrialPlan


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing more to run."""

    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOutline:
    """What a search would run, seen before it starts."""

    candidates: int
    adapters: int
    max_probes: int
    max_trainings: int
    """As many as the search wants if time allows; one that fails is replaced while trials are left."""
    max_trials_s: float
    """Time in trials after which none is started any more; the one under way is finished."""


def next_step(
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    limits: SearchLimits,
    weights: Weights,
    *,
    estimates: Mapping[Candidate, Estimate] | None = None,
    baseline: Candidate | None = None,
) -> RunTrial | Stop:
    """The next trial of a study, from all its trials so far.

    An unfinished trial comes first whatever the limits: it had been granted. No training is repeated with
    the same seed and length, no shape in a second probe.

    Args:
        candidates: best prior first.
        trials: all of the study; trainings with their scores row by row, by which finalists are told apart.
        limits: what may be spent.
        weights: what is wanted.
        estimates: of shapes; what cannot fit is not run, nor what needs as much, nor what is slower and
            larger than something measured.
        baseline: what is trained with now: probed before all else, and trained as the finalists are.
    """
    unfinished = [trial for trial in trials if trial.state is not TrialState.FINISHED]
    if unfinished:
        return RunTrial(min(unfinished, key=lambda trial: trial.number).plan)
    launched = sum(trial.reused_from is None for trial in trials)
    if launched >= limits.max_trials:
        return Stop(f"the limit of {limits.max_trials} trials was reached")
    if limits.spent_s >= limits.budget_s:
        return Stop(f"the budget of {limits.budget_s / 60:.3g} minutes was spent")
    evidence = Evidence(trials, limits.memory_limit_bytes, estimates)
    if baseline is not None and not evidence.settled(baseline):
        return RunTrial(TrialPlan(candidate=baseline, rung=Rung.PROBE, reason=REASON))
    if not evidence.trainings:
        left = _probes_left(candidates, evidence, limits)
        # Where speed or memory come first, they are measured of all; else of what is to be trained.
        adapters = FIRST_ADAPTERS if limits.can_learn and limits.quality_first else ADAPTERS
        if (plan := next_probe(candidates, evidence, weights, left=left, adapters=adapters)) is not None:
            return RunTrial(plan)
    if not any(evidence.measured(candidate) for candidate in candidates):
        if baseline is not None and evidence.measured(baseline) is not None:
            return Stop("only the present configuration could be measured within the limits")
        return Stop("nothing fits: no probe ran to its end within the memory that there is")
    if not limits.can_learn:
        return Stop("the search is complete; quality cannot be measured without the model's weights")
    training = Training(candidates, evidence, weights, _room(evidence, limits, launched))
    plan = training.next_trial()
    if baseline is not None:
        measured = evidence.measured(baseline)
        step_s = (measured.step_s_mean if measured else None) or 0.0
        steps = plan.train_steps if plan else 0
        affords = training.room.setup_s + steps * step_s <= training.room.seconds
        plan = before(plan, baseline, evidence, affords=affords) or plan
    return RunTrial(plan) if plan is not None else Stop(f"the search is complete: {training.conclusion()}")


def outline(candidates: Sequence[Candidate], limits: SearchLimits) -> PlanOutline:
    """How far a search over these candidates would go at most."""
    shapes = {candidate.shape_key for candidate in candidates}
    reserve = _reserve(candidates, limits)
    adapters = min(ADAPTERS, len(_adapters(candidates)))
    rates = 1 + 2 * Arm.MOST_RATES
    wanted = adapters * rates + min(adapters * rates, FINALISTS) * (MOST_SEEDS - 1)
    return PlanOutline(
        candidates=len(candidates),
        adapters=len(_adapters(candidates)),
        max_probes=min(len(shapes), limits.max_trials - reserve),
        max_trainings=min(limits.max_trials - 1, wanted) if limits.can_learn else 0,
        max_trials_s=limits.budget_s,
    )


def price_of(
    plan: TrialPlan,
    candidates: Sequence[Candidate],
    evidence: Evidence,
    weights: Weights,
    limits: SearchLimits,
) -> float:
    """Wall time that a trial may be expected to take, in seconds."""
    if plan.rung is Rung.PROBE:
        return _probe_s(evidence, limits)
    training = Training(candidates, evidence, weights, _room(evidence, limits, launched=0))
    return training.price_s(plan.candidate, plan.train_steps)


def _probe_s(evidence: Evidence, limits: SearchLimits) -> float:
    durations = [trial.wall_s for trial in evidence.launched_probes if trial.wall_s]
    return fmean(durations) if durations else limits.probe_s_guess


def _room(evidence: Evidence, limits: SearchLimits, launched: int) -> Room:
    besides = [
        trial.wall_s - trial.measurement.measured_s
        for trial in evidence.launched_probes
        if trial.wall_s is not None and trial.measurement is not None
    ]
    return Room(
        seconds=limits.budget_s - limits.spent_s,
        trials=limits.max_trials - launched,
        full_steps=limits.full_steps,
        setup_s=max(0.0, max(besides, default=limits.probe_s_guess)),
        finish_limit_s=limits.finish_limit_s,
        quality_first=limits.quality_first,
    )


def _probes_left(candidates: Sequence[Candidate], evidence: Evidence, limits: SearchLimits) -> int:
    """Probes that the limits on trials and time still allow; one may begin while probing has time left."""
    # While nothing fits there is nothing to train: one trial is reserve enough.
    reserve = _reserve(candidates, limits)
    if not evidence.has_measured():
        reserve = min(reserve, 1, limits.max_trials - 1)
    by_count = limits.max_trials - reserve - len(evidence.launched_probes)
    share = PROBE_BUDGET_SHARE if limits.can_learn else 1.0
    by_time = math.ceil((limits.budget_s * share - limits.spent_s) / _probe_s(evidence, limits))
    return min(by_count, by_time)


def _reserve(candidates: Sequence[Candidate], limits: SearchLimits) -> int:
    """Trials that are kept for training."""
    if not limits.can_learn:
        return 0
    wanted = LEAST_TRAININGS if len(_adapters(candidates)) > 1 else SEEDS + Arm.MOST_RATES
    return min(wanted, limits.max_trials // 2)


def _adapters(candidates: Iterable[Candidate]) -> list[Adapter]:
    return list(dict.fromkeys(candidate.adapter for candidate in candidates))
