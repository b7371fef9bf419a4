"""What else a search would start while some of its trials are under way, where several devices are free.

What is under way counts as tried, and tells nothing yet: no trial is started twice, and nothing is concluded
from what nobody knows. Pure, as :mod:`.search`: told from the trials, and from which of them run. Knows
nothing of devices and of how trials run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from .domain import Candidate, Estimate, Measurement, Outcome, Rung, Trial, TrialPlan, TrialState, Weights
from .evidence import Evidence
from .search import RunTrial, SearchLimits, next_step, price_of

NO_BETTER = 0.95
"""Speed that a probe under way is taken to find, as a share of the least that was measured: no reason to go
on from its shape rather than from the best that is known, nor to try a smaller micro-batch still."""


def next_beside(
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    limits: SearchLimits,
    weights: Weights,
    *,
    running: Collection[str],
    estimates: Mapping[Candidate, Estimate] | None = None,
    baseline: Candidate | None = None,
) -> RunTrial | None:
    """The trial to start beside those that run; None where none is, before something has ended.

    - Until one shape is known to fit, one probe runs at a time: what comes next hangs on it.
    - Then the search goes on as if probes found nothing better. No training begins before the probes that
      come first have ended, since the length of all trainings hangs on them.
    - A training under way is one that nothing is known of: other adapters and rates come next. Second seeds
      begin when nothing is under way that might be better than what they are given to.
    - What runs is paid for beforehand, so limits are kept to within one trial for each device.

    Args:
        candidates, trials, limits, weights, estimates, baseline: as of :func:`.search.next_step`.
        running: ids of the trials under way; what is unfinished and not among them had been granted.
    """
    under_way = [each for each in trials if each.id in running and each.state is not TrialState.FINISHED]
    evidence = Evidence(trials, limits.memory_limit_bytes, estimates)
    trainings = [each for each in trials if each.plan.rung is Rung.TRAIN]
    probes = [each for each in under_way if each.plan.rung is Rung.PROBE]
    if not evidence.has_measured():
        return None
    prices_s = {each.id: price_of(each.plan, candidates, evidence, weights, limits) for each in under_way}
    spent = replace(limits, spent_s=limits.spent_s + sum(prices_s.values()))
    assumed = _no_better(evidence) if not trainings else None
    seen = [_as_if_ended(each, prices_s[each.id], assumed) if each in under_way else each for each in trials]
    step = next_step(candidates, seen, spent, weights, estimates=estimates, baseline=baseline)
    if not isinstance(step, RunTrial) or _has_to_wait(step.plan, under_way, probes, trainings):
        return None
    return step


def _has_to_wait(
    plan: TrialPlan, under_way: Sequence[Trial], probes: Sequence[Trial], trainings: Sequence[Trial]
) -> bool:
    """Something under way may change whether, or how, this is to be run."""
    if plan.rung is Rung.PROBE:
        return False
    if not trainings and probes:
        return True
    is_shape_open = any(each.candidate.shape_key == plan.candidate.shape_key for each in probes)
    is_search_open = any(each.plan.rung is Rung.PROBE or each.plan.replicate == 0 for each in under_way)
    return is_shape_open or (plan.replicate > 0 and is_search_open)


def _as_if_ended(trial: Trial, wall_s: float, assumed: Measurement | None) -> Trial:
    """As tried, without a result; where a measurement is assumed, with that."""
    ended = replace(trial, state=TrialState.FINISHED, wall_s=wall_s)
    if assumed is None or trial.plan.rung is not Rung.PROBE:
        return replace(ended, outcome=Outcome.LOST)
    return replace(ended, outcome=Outcome.OK, measurement=assumed)


def _no_better(evidence: Evidence) -> Measurement:
    """A little slower than all that was measured, and as large as the largest."""
    known = [trial.measurement for trial in evidence.probes.values() if evidence.succeeded(trial)]
    measured = [each for each in known if each is not None]
    slowest = min(measured, key=lambda each: each.speed or 0.0)
    largest = max(measured, key=lambda each: each.memory_bytes or 0)
    return replace(
        largest,
        tokens_per_s=_scaled(slowest.tokens_per_s, NO_BETTER),
        samples_per_s=_scaled(slowest.samples_per_s, NO_BETTER),
        steps_per_s=_scaled(slowest.steps_per_s, NO_BETTER),
        step_s_mean=_scaled(slowest.step_s_mean, 1 / NO_BETTER),
    )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value
