"""A recommendation with all its evidence as one JSON document, for people and programs.

Every figure stands in a block that says where it came from: measured here, or a published prior. Knows
nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..codec import to_json
from ..comparison import PROBED_COLUMNS
from ..domain import SCHEMA_VERSION, Candidate, Estimate, Outcome, Recommendation, Rung, Study, Trial
from ..estimates.intervals import Fits
from ..keys import environment_key, measurement_key
from ..overview import funnel, rate_sweeps
from ..priors import PRIOR_SOURCE, published_quality
from ..resources import asked_for

MEASURED, ESTIMATED, PUBLISHED = "measured here", "estimated by a dry run", "published prior"
"""Where a figure came from."""


def recommendation_document(
    recommendation: Recommendation,
    study: Study,
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate],
    *,
    enumerated: int | None = None,
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain JSON data; bytes, seconds, UTC; null where nothing was measured.

    Args:
        enumerated: how many candidates the search began with; None where that is not known.
        baseline: what was found of the configuration that somebody trains with now, as plain JSON data.
    """
    facts = study.facts
    stages = funnel(
        trials,
        estimates,
        enumerated=enumerated,
        ranking=recommendation.ranking,
        memory_limit_bytes=study.request.memory_limit_bytes,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "study_id": study.id,
        "created_at": study.created_at.isoformat(),
        "request": to_json(study.request),
        "recommended": _candidate(recommendation.candidate),
        "score": recommendation.score,
        "scoring": recommendation.scoring.value,
        "weights": to_json(recommendation.weights),
        "reasons": list(recommendation.reasons),
        "quality_measured": recommendation.quality_measured,
        "evidence": _evidence(recommendation, trials),
        "estimate": _estimate(recommendation.estimate),
        "prior": {
            "provenance": PUBLISHED,
            "source": PRIOR_SOURCE,
            "accuracy": published_quality(recommendation.candidate.adapter),
        },
        "ranking": [to_json(scored) for scored in recommendation.ranking],
        "comparisons": [to_json(each) for each in recommendation.comparisons],
        "confidence": recommendation.confidence,
        "named": [to_json(named) for named in recommendation.named],
        "finish": to_json(recommendation.finish) if recommendation.finish else None,
        "resources": to_json(resources) if (resources := asked_for(study, recommendation)) else None,
        "stopped": recommendation.stopped,
        "baseline": baseline,
        "funnel": [to_json(stage) for stage in stages],
        "sweeps": [to_json(sweep) for sweep in rate_sweeps(trials)],
        "trials": [_trial(trial) for trial in trials],
        "ruled_out": [
            {"candidate": _candidate(candidate), "estimated": _estimate(told)}
            for candidate, told in estimates.items()
            if told.fits is Fits.NO
        ],
        "time": {
            "wall_s": recommendation.wall_s,
            "measured_s": recommendation.measured_s,
            "evaluation_s": recommendation.evaluation_s,
            "overhead_share": recommendation.overhead_share,
        },
        "facts": to_json(facts) if facts else None,
        "environment_key": environment_key(facts.hardware) if facts else None,
        "measurement_key": facts
        and measurement_key(
            facts,
            recommendation.candidate,
            seed=study.request.seed,
            memory_limit_bytes=study.request.memory_limit_bytes,
        ),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "shape_key": candidate.shape_key,
        "description": candidate.describe(),
        **to_json(candidate),
    }


def _evidence(recommendation: Recommendation, trials: Sequence[Trial]) -> dict[str, Any]:
    """Speed and memory with the trial that measured them, and the same for quality."""
    figures = to_json(recommendation.evidence)
    speed_and_memory = {name: figures.pop(name) for name in PROBED_COLUMNS}
    shape = recommendation.candidate.shape_key
    probe_id = next(
        (
            trial.id
            for trial in trials
            if trial.plan.rung is Rung.PROBE
            and trial.outcome is Outcome.OK
            and trial.candidate.shape_key == shape
        ),
        recommendation.trial_id,
    )
    return {
        "speed_and_memory": {"provenance": MEASURED, "trial_id": probe_id, **speed_and_memory},
        "training": {"provenance": MEASURED, "trial_id": recommendation.trial_id, **figures},
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "number": trial.number,
        "rung": trial.plan.rung.value,
        "why": trial.plan.reason,
        "train_steps": trial.plan.train_steps or None,
        "candidate": _candidate(trial.candidate),
        "outcome": trial.outcome.value if trial.outcome else None,
        "reason": trial.reason,
        "attempts": trial.attempts,
        "wall_s": trial.wall_s,
        "estimated": _estimate(trial.estimate),
        "measured": to_json(trial.measurement) if trial.measurement else None,
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else {"provenance": ESTIMATED, **to_json(estimate)}
