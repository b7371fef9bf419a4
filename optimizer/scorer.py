"""Evidence in, ranking and recommendation out.

Scores depend on the best of a study, so they are computed on reading; only a recommendation is stored.
Knows nothing of how trials are chosen or run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import NothingFits
from .comparison import Compared, comparable_parts, comparable_trials, memory_column, weighted_score
from .domain import (
    Adapter,
    Candidate,
    Estimate,
    Method,
    Recommendation,
    ScoredTrial,
    Scoring,
    Study,
    Trial,
    Weights,
)
from .reasons import explain, explain_nothing_fits
from .sizes import device_bytes

TIE_POINTS = 0.5
"""Scores this close to the best are ties: 1.25 % of speed in the balanced score, less than probes resolve."""

CLASSIC_FULL_BONUS_PERCENT = 85.0
CLASSIC_CEILING_PERCENT = 95.0


def recommend(
    study: Study,
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate] | None = None,
    *,
    wall_s: float,
    measured_s: float,
) -> Recommendation:
    """The best of a study's trials, with its evidence and the reasons.

    Args:
        estimates: what was told of shapes, among them those that were not run.

    Raises:
        NothingFits: no trial ran to its end within the limit; says what was tried and what would help.
    """
    request, told = study.request, estimates or {}
    ranking = score_trials(
        trials,
        weights=request.effective_weights,
        scoring=request.scoring,
        memory_limit_bytes=request.memory_limit_bytes,
        memory_total_bytes=device_bytes(study.facts.hardware) if study.facts else None,
    )
    if not ranking:
        message, next_step = explain_nothing_fits(trials, told, request.memory_limit_bytes)
        raise NothingFits(message, next_step=next_step)
    by_id = {each.trial.id: each for each in comparable_trials(trials, request.memory_limit_bytes)}
    ranked = [by_id[scored.trial_id] for scored in ranking]
    return Recommendation(
        study_id=study.id,
        trial_id=ranked[0].trial.id,
        candidate=ranked[0].trial.candidate,
        evidence=ranked[0].measurement,
        score=ranking[0].score,
        scoring=request.scoring,
        weights=request.effective_weights,
        ranking=ranking,
        reasons=explain(study, ranking, ranked, trials, told),
        estimate=ranked[0].trial.estimate,
        quality_measured=ranked[0].measurement.heldout_loss is not None,
        wall_s=wall_s,
        measured_s=measured_s,
    )


def score_trials(
    trials: Sequence[Trial],
    *,
    weights: Weights,
    scoring: Scoring,
    memory_limit_bytes: int | None,
    memory_total_bytes: int | None = None,
) -> tuple[ScoredTrial, ...]:
    """Rank the comparable trials, best first; empty if no trial succeeded within the memory limit.

    Trials within TIE_POINTS of the best score are ordered by size: trainable parameters, then memory,
    then candidate id. Classic scoring relates a peak to the limit, or to ``memory_total_bytes`` (the
    device's memory) where there is none, and leaves out trials that lack one of its terms.
    """
    compared = comparable_trials(trials, memory_limit_bytes)
    if scoring is Scoring.CLASSIC:
        with_terms = [(c, _classic_terms(c, memory_limit_bytes or memory_total_bytes)) for c in compared]
        compared = [each for each, terms in with_terms if terms]
        shown = [terms for _, terms in with_terms if terms]
        scores = [0.4 * t["throughput"] + 0.2 * t["memory_bonus"] + 0.4 * t["quality"] for t in shown]
        parts = comparable_parts([each.measurement for each in compared])
    else:
        shown = parts = comparable_parts([each.measurement for each in compared])
        scores = [weighted_score(part, weights) for part in parts]
    on_front = _pareto_front(parts)
    best = max(scores, default=0.0)
    tied = [best - score <= TIE_POINTS for score in scores]
    column = memory_column([each.measurement for each in compared])

    def place(index: int) -> tuple[float, float, float, str]:
        measurement = compared[index].measurement
        params = measurement.trainable_params
        return (
            -best if tied[index] else -scores[index],
            math.inf if params is None else params,
            getattr(measurement, column) if column else 0,
            compared[index].trial.candidate.id,
        )

    order = sorted(range(len(compared)), key=place)
    return tuple(
        ScoredTrial(
            trial_id=compared[index].trial.id,
            number=compared[index].trial.number,
            rank=rank,
            score=scores[index],
            parts=shown[index],
            on_pareto_front=on_front[index],
            tied_with_best=tied[index] and sum(tied) > 1,
        )
        for rank, index in enumerate(order, start=1)
    )


def _pareto_front(parts: Sequence[Mapping[str, float]]) -> list[bool]:
    """Whether no other is at least as good in every part and better in one."""

    def dominates(other: Mapping[str, float], own: Mapping[str, float]) -> bool:
        return other != own and all(other[name] >= value for name, value in own.items())

    return [not any(dominates(other, own) for other in parts) for own in parts]


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
