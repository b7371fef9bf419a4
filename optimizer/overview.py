"""A study seen as a whole: how candidates became few, how those compare, and which learning rates were tried.

Pure views of stored evidence, shared by terminal, page and documents. Ranks nothing itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .comparison import WHY_FAILED, comparable_trials, exceeds
from .domain import (
    Adapter,
    Candidate,
    Comparison,
    Estimate,
    Event,
    Measurement,
    Outcome,
    Recommendation,
    Rung,
    ScoredTrial,
    Trial,
)
from .estimates.intervals import Fits

CANNOT_FIT = "cannot fit, by a dry run"
NOT_TRIED = "not tried: others promised more, or the limits were reached"
OVER_THE_LIMIT = "took more than the memory limit"
WORSE_SETTINGS = "slower, or larger, than other settings of the same adapter"
WORSE_ADAPTER = "not among the front-runners by speed, memory and what is known of the adapter"
LEARNT_LESS = "learnt less at this rung"
WORSE_RATE = "learnt less than at another learning rate"
NOT_ENDED = "not ended"
NOT_COMPARED = "not comparable: others of its shape failed, or took more than the limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of the way from all candidates to those that are compared."""

    name: str
    """``enumerated``, ``may fit``, ``probed``, ``trained 40 steps``, ``compared``."""
    candidates: int
    """That came so far. From the first training on, each learning rate is one."""
    adapters: int | None = None
    """Among them; None where it is not known."""
    left: Mapping[str, int]
    """Why some went no further → how many: those of this stage that are not in the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One compared candidate with all that is shown of it."""

    scored: ScoredTrial
    trial: Trial
    measurement: Measurement
    """With the speed of its shape's probe, and the larger memory of both."""
    heldout_loss: float | None
    """Mean over the replicates."""
    seeds: int
    """Trainings that its figures are means of."""
    comparison: Comparison | None
    """Of the recommended candidate with this one; None of itself, or where none was made."""
    is_recommended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """One learning rate and what was learnt at it."""

    learning_rate: float
    trial_number: int
    heldout_loss: float | None
    heldout_loss_se: float | None
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The learning rates that were tried for one adapter, at equal steps."""

    adapter: Adapter
    train_steps: int
    points: tuple[RatePoint, ...]
    """By rate, the lowest first."""
    kept: float | None
    """The rate that the adapter went on with; where it was taken no further, that with the lowest loss."""


def enumerated_of(events: Iterable[Event]) -> int | None:
    """How many candidates a study's search began with, the last time that it did; None if never."""
    counts = [event.payload.get("candidates") for event in events if event.kind == "search.started"]
    return next((count for count in reversed(counts) if isinstance(count, int)), None)


def funnel(
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate],
    *,
    enumerated: int | None,
    ranking: Sequence[ScoredTrial] = (),
    memory_limit_bytes: int | None = None,
) -> tuple[Stage, ...]:
    """The stages of a study that there were, first to last; none before anything was tried.

    Args:
        enumerated: how many candidates the search began with; None where that was not kept.
        ranking: of the study's recommendation; empty where there is none yet.
    """
    probes = {t.candidate.shape_key: t for t in trials if t.plan.rung is Rung.PROBE}
    trainings = [trial for trial in trials if trial.plan.rung is Rung.TRAIN]
    by_steps = {
        steps: [trial for trial in trainings if trial.plan.train_steps == steps]
        for steps in sorted({trial.plan.train_steps for trial in trainings})
    }
    stages = list(_untrained_stages(enumerated, estimates, probes))
    if probes:
        left = _left_after_probing(list(probes.values()), trainings, ranking, memory_limit_bytes)
        stages.append(_stage("probed", (trial.candidate for trial in probes.values()), left))
    levels = list(by_steps.items())
    for position, (steps, here) in enumerate(levels):
        later = [trial for _, after in levels[position + 1 :] for trial in after]
        left = _left_after_training(here, later, ranking, is_last=position + 1 == len(levels))
        stages.append(_stage(f"trained {steps} steps", (trial.candidate for trial in here), left))
    if ranking:
        by_id = {trial.id: trial.candidate for trial in trials}
        stages.append(_stage("compared", (by_id[s.trial_id] for s in ranking if s.trial_id in by_id), {}))
    return tuple(stages)


def leaderboard(
    trials: Sequence[Trial], recommendation: Recommendation, *, memory_limit_bytes: int | None
) -> tuple[Place, ...]:
    """Every compared candidate, best first."""
    compared = {each.trial.id: each.measurement for each in comparable_trials(trials, memory_limit_bytes)}
    by_id = {trial.id: trial for trial in trials}
    comparisons = {comparison.trial_id: comparison for comparison in recommendation.comparisons}
    places = []
    for scored in recommendation.ranking:
        trial = by_id.get(scored.trial_id)
        if trial is None:
            continue
        is_recommended = scored.trial_id == recommendation.trial_id
        measurement = (
            recommendation.evidence
            if is_recommended
            else compared.get(trial.id) or trial.measurement or Measurement()
        )
        loss = measurement.heldout_loss if scored.heldout_loss is None else scored.heldout_loss
        places.append(
            Place(
                scored=scored,
                trial=trial,
                measurement=measurement,
                heldout_loss=loss,
                seeds=max(1, len(scored.replicates)),
                comparison=None if is_recommended else comparisons.get(trial.id),
                is_recommended=is_recommended,
            )
        )
    return tuple(places)


def rate_sweeps(trials: Sequence[Trial]) -> tuple[Sweep, ...]:
    """The adapters that were trained at several learning rates, in the order in which they were tried.

    Where that was done at several numbers of steps, the one with most rates is told, of equals the longest.
    """
    by_adapter: dict[Adapter, list[Trial]] = {}
    for trial in trials:
        if trial.plan.rung is Rung.TRAIN:
            by_adapter.setdefault(trial.candidate.adapter, []).append(trial)
    return tuple(found for own in by_adapter.values() if (found := _sweep(own)))


def _sweep(own: Sequence[Trial]) -> Sweep | None:
    rates_at: dict[int, dict[float, Trial]] = {}
    for trial in own:
        at = rates_at.setdefault(trial.plan.train_steps, {})
        known = at.get(trial.candidate.learning_rate)
        # The first seed stands for a rate, unless it was not trained to the end.
        if known is None or known.measurement is None:
            at[trial.candidate.learning_rate] = trial
    steps, rates = max(rates_at.items(), key=lambda item: (len(item[1]), item[0]))
    if len(rates) < 2:
        return None
    points = tuple(
        RatePoint(
            learning_rate=rate,
            trial_number=trial.number,
            heldout_loss=trial.measurement.heldout_loss if trial.measurement else None,
            heldout_loss_se=trial.measurement.heldout_loss_se if trial.measurement else None,
            outcome=trial.outcome,
        )
        for rate, trial in sorted(rates.items())
    )
    longer = [trial for trial in own if trial.plan.train_steps > steps]
    learnt = [point for point in points if point.heldout_loss is not None]
    kept: float | None = None
    if longer:
        kept = max(longer, key=lambda trial: trial.plan.train_steps).candidate.learning_rate
    elif learnt:
        kept = min(learnt, key=lambda point: point.heldout_loss or 0.0).learning_rate
    return Sweep(adapter=own[0].candidate.adapter, train_steps=steps, points=points, kept=kept)


def _untrained_stages(
    enumerated: int | None, estimates: Mapping[Candidate, Estimate], probes: Mapping[str, Trial]
) -> Iterable[Stage]:
    """Those before anything ran. Where nobody knows how many there were, there are none."""
    if enumerated is None:
        return
    hopeless = sum(told.fits is Fits.NO for told in estimates.values())
    yield Stage(name="enumerated", candidates=enumerated, left=_counted({CANNOT_FIT: hopeless}))
    may_fit = max(enumerated - hopeless, len(probes))
    yield Stage(name="may fit", candidates=may_fit, left=_counted({NOT_TRIED: may_fit - len(probes)}))


def _stage(name: str, candidates: Iterable[Candidate], left: Mapping[str, int]) -> Stage:
    distinct = list(dict.fromkeys(candidates))
    adapters = len({candidate.adapter for candidate in distinct})
    return Stage(name=name, candidates=len(distinct), adapters=adapters, left=left)


def _left_after_probing(
    probes: Sequence[Trial],
    trainings: Sequence[Trial],
    ranking: Sequence[ScoredTrial],
    memory_limit_bytes: int | None,
) -> Mapping[str, int]:
    trained_shapes = {trial.candidate.shape_key for trial in trainings}
    trained_adapters = {trial.candidate.adapter for trial in trainings}
    ranked = {scored.trial_id for scored in ranking}
    left: Counter[str] = Counter()
    for trial in probes:
        if trial.candidate.shape_key in trained_shapes or trial.id in ranked:
            continue
        if trial.outcome is not Outcome.OK:
            left[_why_failed(trial)] += 1
        elif exceeds(trial.measurement, memory_limit_bytes):
            left[OVER_THE_LIMIT] += 1
        elif trial.candidate.adapter in trained_adapters:
            left[WORSE_SETTINGS] += 1
        elif trainings:
            left[WORSE_ADAPTER] += 1
    return _counted(left)


def _left_after_training(
    here: Sequence[Trial], later: Sequence[Trial], ranking: Sequence[ScoredTrial], *, is_last: bool
) -> Mapping[str, int]:
    """Of one rung, candidates that neither a longer training nor the ranking has.

    While a study goes on, nobody has left the last rung but those that failed.
    """
    went_on = {trial.candidate for trial in later}
    ranked = {scored.trial_id for scored in ranking}
    ranked |= {trial_id for scored in ranking for trial_id in scored.replicates}
    went_on |= {trial.candidate for trial in here if trial.id in ranked}
    configurations = {_unrated(candidate) for candidate in went_on}
    left: Counter[str] = Counter()
    by_candidate: dict[Candidate, list[Trial]] = {}
    for trial in here:
        by_candidate.setdefault(trial.candidate, []).append(trial)
    for candidate, own in by_candidate.items():
        if candidate in went_on:
            continue
        if not any(trial.outcome is Outcome.OK for trial in own):
            left[_why_failed(own[0])] += 1
        elif _unrated(candidate) in configurations:
            left[WORSE_RATE] += 1
        elif is_last:
            left[NOT_COMPARED] += bool(ranking)
        else:
            left[LEARNT_LESS] += 1
    return _counted(left)


def _why_failed(trial: Trial) -> str:
    return NOT_ENDED if trial.outcome is None else WHY_FAILED.get(trial.outcome, trial.outcome.value)


def _unrated(candidate: Candidate) -> Candidate:
    """The same at any learning rate."""
    return replace(candidate, learning_rate=0.0)


def _counted(left: Mapping[str, int]) -> dict[str, int]:
    """Without those that nobody left for, most first."""
    return {why: count for why, count in sorted(left.items(), key=lambda item: -item[1]) if count > 0}
