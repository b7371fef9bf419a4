"""A study as one JSON document, in the words of the HTTP API: for the command line and Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..optimizer.codec import to_json
from ..optimizer.domain import (
    SCHEMA_VERSION,
    Candidate,
    Estimate,
    Recommendation,
    Study,
    Trial,
    TrialState,
)
from ..optimizer.overview import funnel, rate_sweeps
from ..optimizer.recipe import steps_for
from ..optimizer.resources import asked_for
from ..runners.handed_over import exported_adapter
from .baseline_outcome import baseline_document
from .response_schemas.recommendations import BaselineDocument, RecommendationDocument
from .response_schemas.studies import StudyDocument
from .response_schemas.trials import RuledOut, TrialDocument

_ONLY_HTTP = {"links", "schema_version"}


def report_document(
    study: Study,
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate],
    recommendation: Recommendation | None,
    *,
    enumerated: int | None = None,
) -> dict[str, Any]:
    """A study with its trials and what it recommends; ``recommendation`` is null unless it succeeded.

    Args:
        enumerated: how many candidates the search began with; None where that is not known.
    """
    baseline = baseline_document(study, trials, recommendation)
    stages = funnel(
        trials,
        estimates,
        enumerated=enumerated,
        ranking=recommendation.ranking if recommendation else (),
        memory_limit_bytes=study.request.memory_limit_bytes,
    )
    best = recommendation and recommendation_of(study, recommendation, baseline)
    return {
        "schema_version": SCHEMA_VERSION,
        "study": study_document(study, Counter(trial.state for trial in trials)),
        "trials": [TrialDocument.of(trial).model_dump(mode="json") for trial in trials],
        "ruled_out": [each.model_dump(mode="json") for each in RuledOut.among(estimates)],
        "funnel": [to_json(stage) for stage in stages],
        "sweeps": [to_json(sweep) for sweep in rate_sweeps(trials)],
        "recommendation": best and best.model_dump(mode="json", exclude=_ONLY_HTTP),
    }


def recommendation_of(
    study: Study, recommendation: Recommendation, baseline: BaselineDocument | None
) -> RecommendationDocument:
    """What a study recommends, with its adapter as a file and what it asks of a scheduler."""
    return RecommendationDocument.of(
        recommendation,
        adapter_config=adapter_config_of(study, recommendation),
        resources=asked_for(study, recommendation),
        baseline=baseline,
    )


def study_document(study: Study, counts: Mapping[TrialState, int]) -> dict[str, Any]:
    """Where a study stands; of its trials only how many are in each state."""
    return StudyDocument.of(study, counts).model_dump(mode="json", exclude=_ONLY_HTTP)


def adapter_config_of(study: Study, recommendation: Recommendation) -> dict[str, Any] | None:
    """PEFT's ``adapter_config.json``; None where every weight is trained."""
    if study.facts is None:
        return None
    total_steps = steps_for(study.facts.train_rows, study.facts.recipe)
    return exported_adapter(recommendation.candidate, study.facts, total_steps)
