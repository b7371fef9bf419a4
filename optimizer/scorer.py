"""Evidence in, ranking and recommendation out.

Scores depend on the best of a study, so they are computed on reading; only a recommendation is stored.
Knows nothing of how trials are chosen or run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import NothingFits
from .comparison import (
    Compared,
    comparable_parts,
    comparable_trials,
    exceeds_finish,
    finish_s,
    memory_column,
    weighted_score,
)
from .domain import (
    OBJECTIVE_WEIGHTS,
    QUALITY_WITHIN,
    Adapter,
    Candidate,
    Comparison,
    Estimate,
    Finish,
    Measurement,
    Method,
    Named,
    Objective,
    Recommendation,
    ScoredTrial,
    Scoring,
    Study,
    Trial,
    Weights,
)
from .paired import CONFIDENCE
from .quality import standings, with_seeds
from .reasons import explain, explain_nothing_fits, say_why_named
from .recipe import steps_for
from .sizes import device_bytes
from .spreading import devices_of

TIE_POINTS = 0.5
"""Scores this close to the best are ties: 1.25 % of speed in the balanced score, less than probes resolve."""

CLASSIC_FULL_BONUS_PERCENT = 85.0
CLASSIC_CEILING_PERCENT = 95.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a ranking is made for."""

    weights: Weights
    scoring: Scoring = Scoring.COMPARABLE
    memory_limit_bytes: int | None = None
    memory_total_bytes: int | None = None
    """The device's memory."""
    quality_within: float | None = None
    """How much more loss than the best is as good, as a share of it; None: any."""
    finish_limit_s: float | None = None
    full_steps: int | None = None
    """Optimizer steps of the user's whole training."""

    @classmethod
    def of(cls, study: Study) -> Aim:
        """What a study asks for."""
        request, facts = study.request, study.facts
        return cls(
            weights=request.effective_weights,
            scoring=request.scoring,
            memory_limit_bytes=request.memory_limit_bytes,
            memory_total_bytes=device_bytes(facts.hardware) if facts else None,
            quality_within=request.lets_pass,
            finish_limit_s=request.finish_limit_s,
            full_steps=steps_for(facts.train_rows, facts.recipe) if facts else None,
        )

    def toward(self, objective: Objective) -> Aim:
        """The same limits with another objective."""
        return replace(self, weights=OBJECTIVE_WEIGHTS[objective], quality_within=QUALITY_WITHIN[objective])


@dataclass(frozen=True, slots=True)
class Ranking:
    """Compared candidates, best first, with what was found of their losses."""

    scored: tuple[ScoredTrial, ...]
    compared: tuple[Compared, ...]
    comparisons: tuple[Comparison, ...] = ()
    """The first against the others."""


def recommend(
    study: Study,
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate] | None = None,
    *,
    wall_s: float,
    measured_s: float,
    evaluation_s: float = 0.0,
    stopped: str | None = None,
) -> Recommendation:
    """The best of a study's trials, with its evidence and the reasons.

    Args:
        study: with what it asks for.
        trials: all of it; trainings with their scores row by row.
        estimates: what was told of shapes, among them those that were not run.
        wall_s: wall time of the study.
        measured_s: part of it spent in steps that were timed or trained.
        evaluation_s: part of it in which trainings were judged on held-out rows.
        stopped: why the search ended, in a sentence.

    Raises:
        NothingFits: no trial ran to its end within the limits; says what was tried and what would help.
    """
    request, told, aim = study.request, estimates or {}, Aim.of(study)
    ranking = rank(trials, aim)
    if not ranking.scored:
        message, next_step = explain_nothing_fits(trials, told, request, full_steps=aim.full_steps)
        raise NothingFits(message, next_step=next_step)
    best = ranking.compared[0]
    named = name_others(trials, aim)
    return Recommendation(
        study_id=study.id,
        trial_id=best.trial.id,
        candidate=best.trial.candidate,
        evidence=best.measurement,
        score=ranking.scored[0].score,
        scoring=request.scoring,
        weights=request.effective_weights,
        ranking=ranking.scored,
        reasons=explain(study, ranking.scored, ranking.compared, ranking.comparisons, trials, told),
        estimate=best.trial.estimate,
        quality_measured=best.measurement.judged_loss is not None,
        wall_s=wall_s,
        measured_s=measured_s,
        evaluation_s=evaluation_s,
        comparisons=ranking.comparisons,
        confidence=CONFIDENCE if ranking.comparisons else None,
        named=named,
        finish=finish_of(
            best.measurement,
            aim.full_steps,
            request.price_per_hour,
            devices=devices_of(best.trial.candidate.level, study.facts),
        ),
        stopped=stopped,
    )


def rank(trials: Sequence[Trial], aim: Aim) -> Ranking:
    """Rank what can be compared; empty if no trial succeeded within the limits.

    Candidates that are as good in what they learnt as is asked for stand before all others; among them, what
    they learnt counts alike. Those within TIE_POINTS of the best score are ordered by size: trainable
    parameters, then memory, then what they learnt (two rates of one adapter), then candidate id. Classic
    scoring relates a peak to the limit, or to the
    device's memory where there is none, and leaves out trials that lack one of its terms.
    """
    compared = _within_time(comparable_trials(trials, aim.memory_limit_bytes), aim)
    if aim.scoring is Scoring.CLASSIC:
        available_bytes = aim.memory_limit_bytes or aim.memory_total_bytes
        with_terms = [(c, terms) for c in compared if (terms := _classic_terms(c, available_bytes))]
        compared = [each for each, _ in with_terms]
    parts = comparable_parts([each.measurement for each in compared])
    found = standings(compared)
    as_good = [True] * len(compared)
    if found is not None:
        as_good = found.as_good(aim.quality_within)
        compared = [with_seeds(each, found, index) for index, each in enumerate(compared)]
    if aim.scoring is Scoring.CLASSIC:
        shown = [terms for _, terms in with_terms]
        scores = [0.4 * t["throughput"] + 0.2 * t["memory_bonus"] + 0.4 * t["quality"] for t in shown]
        as_good = [True] * len(compared)
    else:
        shown = parts
        alike = as_good if aim.quality_within is not None else [False] * len(compared)
        weighed = [
            {**part, "quality": 1.0} if equal and "quality" in part else part
            for part, equal in zip(parts, alike, strict=True)
        ]
        scores = [weighted_score(part, aim.weights) for part in weighed]
    on_front = _pareto_front(parts)
    best = max((score for score, good in zip(scores, as_good, strict=True) if good), default=0.0)
    tied = [good and best - score <= TIE_POINTS for score, good in zip(scores, as_good, strict=True)]
    column = memory_column([each.measurement for each in compared])

    def place(index: int) -> tuple[bool, float, float, float, float, str]:
        measurement = compared[index].measurement
        params = measurement.trainable_params
        return (
            not as_good[index],
            -best if tied[index] else -scores[index],
            math.inf if params is None else params,
            getattr(measurement, column) if column else 0,
            math.inf if measurement.judged_loss is None else measurement.judged_loss,
            compared[index].trial.candidate.id,
        )

    order = sorted(range(len(compared)), key=place)
    scored = tuple(
        ScoredTrial(
            trial_id=compared[index].trial.id,
            number=compared[index].trial.number,
            rank=number,
            score=scores[index],
            parts=shown[index],
            on_pareto_front=on_front[index],
            tied_with_best=tied[index] and sum(tied) > 1,
            replicates=tuple(trial.id for trial in compared[index].replicates),
            heldout_loss=compared[index].measurement.heldout_loss,
            is_as_good=as_good[index],
            finish_s=finish_s(compared[index].measurement, aim.full_steps) if aim.full_steps else None,
        )
        for number, index in enumerate(order, start=1)
    )
    comparisons = found.comparisons(order[0], order) if found is not None and order else ()
    return Ranking(scored, tuple(compared[index] for index in order), comparisons)


def name_others(trials: Sequence[Trial], aim: Aim) -> tuple[Named, ...]:
    """What else could be recommended from the same trials, under a name each."""
    ranking = rank(trials, replace(aim, scoring=Scoring.COMPARABLE))
    if not ranking.compared:
        return ()
    compared = ranking.compared
    column = memory_column([each.measurement for each in compared])
    chosen: dict[str, Compared] = {}
    for name, objective in (("balanced", Objective.BALANCED), ("best quality", Objective.QUALITY)):
        if compared[0].measurement.judged_loss is not None:
            chosen[name] = rank(trials, aim.toward(objective)).compared[0]
    if all(each.measurement.speed for each in compared):
        chosen["fastest"] = max(compared, key=lambda each: each.measurement.speed or 0.0)
    if column:
        chosen["smallest"] = min(compared, key=lambda each: getattr(each.measurement, column))
    return tuple(
        Named(
            name=name,
            trial_id=each.trial.id,
            number=each.trial.number,
            reason=say_why_named(each, compared[0], column),
        )
        for name, each in chosen.items()
    )


def finish_of(
    measurement: Measurement, full_steps: int | None, price_per_hour: float | None, *, devices: int = 1
) -> Finish | None:
    """What the whole training takes and costs at the measured speed; None where that is unknown.

    Args:
        measurement: of a step, by all devices together.
        full_steps: of the whole training.
        price_per_hour: of each device.
        devices: that it takes.
    """
    seconds = finish_s(measurement, full_steps) if full_steps else None
    if seconds is None or full_steps is None:
        return None
    width = measurement.tokens_per_s_rel_halfwidth or 0.0
    return Finish(
        steps=full_steps,
        seconds=seconds,
        low_s=seconds / (1 + width),
        high_s=seconds / max(1 - width, 0.1),
        cost=None if price_per_hour is None else price_per_hour * devices * seconds / 3600,
    )


def _within_time(compared: Sequence[Compared], aim: Aim) -> list[Compared]:
    if aim.full_steps is None:
        return list(compared)
    steps = aim.full_steps
    return [each for each in compared if not exceeds_finish(each.measurement, steps, aim.finish_limit_s)]


def _pareto_front(parts: Sequence[Mapping[str, float]]) -> list[bool]:
    """Whether no other is at least as good in every part and better in one."""

    def dominates(other: Mapping[str, float], own: Mapping[str, float]) -> bool:
        return other != own and all(other[name] >= value for name, value in own.items())

    # Whatever dominates another comes before it in this order, and what is dominated is dominated by one of
    # the front: few comparisons for thousands.
    order = sorted(range(len(parts)), key=lambda each: tuple(parts[each].values()), reverse=True)
    front: list[Mapping[str, float]] = []
    is_on = [False] * len(parts)
    for index in order:
        own = parts[index]
        is_on[index] = not any(dominates(other, own) for other in front)
        if is_on[index] and own not in front:
            front.append(own)
    return is_on


def _classic_terms(compared: Compared, available_bytes: int | None) -> dict[str, float]:
    """The terms of the first design's formula: unbounded throughput, quality by a table; empty if unknown."""
    steps_per_s, used_bytes = compared.measurement.steps_per_s, compared.measurement.memory_bytes
    if steps_per_s is None or used_bytes is None or available_bytes is None:
        return {}
    percent = 100 * used_bytes / available_bytes
    bonus = 50 * min(1.0, percent / CLASSIC_FULL_BONUS_PERCENT)
    return {
        "throughput": 100 * steps_per_s,
        "memory_bonus": bonus if percent <= CLASSIC_CEILING_PERCENT else 0.0,
        "quality": _classic_quality(compared.trial.candidate.adapter),
    }


def _classic_quality(adapter: Adapter) -> float:
    if adapter.method is Method.FULL:
        return 100.0
    if adapter.method is Method.IA3:
        return 87.5
    if adapter.method is Method.ADALORA:
        return 98.75
    rank = adapter.rank or 0
    if rank >= 64:
        return 99.25
    if rank >= 32:
        return 99.0 if adapter.target_set == "full" else 98.75
    if rank >= 16:
        return 98.0 if adapter.target_set in ("balanced", "full") else 96.5
    return 93.5
