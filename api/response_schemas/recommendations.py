"""What a study recommends, against what was trained with before and what was recommended then."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ...optimizer.differences import Difference, EnvironmentChange, ShapeChange
from ...optimizer.domain import (
    Candidate,
    Comparison,
    Estimate,
    Finish,
    Measurement,
    Named,
    Recommendation,
    ScoredTrial,
    Scoring,
    Weights,
)
from ...optimizer.resources import Resources
from .parts import Document, StudyLinks, fields_of


class SettingChange(Document):
    """One setting that the recommendation has otherwise than the baseline."""

    setting: str
    now: str
    then: str


class BaselineDocument(Document):
    """What became of the configuration that is trained with now, and what changing it would bring."""

    name: str
    """Of its file."""
    trainer: str
    description: str | None = None
    candidate_id: str | None = None
    trials: tuple[int, ...] = ()
    """Numbers of those that measured it."""
    reason: str | None = None
    """Why it was not measured, without a full stop; null where it was."""
    is_recommended: bool = False
    times_as_fast: float | None = None
    """The recommended one, in tokens or samples a second."""
    memory_bytes: int | None = None
    """The baseline's peak."""
    memory_change_bytes: int | None = None
    """Negative where the recommended one needs less."""
    loss_difference: float | None = None
    """The recommended one's held-out loss less the baseline's, on the same rows."""
    loss_low: float | None = None
    loss_high: float | None = None
    relation: Literal["better", "worse", "no difference", "unknown"] | None = None
    """Of the recommended one's loss to the baseline's; null where the baseline was not trained as long."""
    changes: tuple[SettingChange, ...] = ()
    sentences: tuple[str, ...] = ()
    """The same for people."""


class RecommendationDocument(Document):
    """The chosen candidate with its evidence."""

    study_id: str
    trial_id: str
    candidate_id: str
    candidate: Candidate
    description: str
    score: float
    scoring: Scoring
    weights: Weights
    reasons: tuple[str, ...]
    ranking: tuple[ScoredTrial, ...]
    comparisons: tuple[Comparison, ...]
    """Held-out loss of the recommended candidate against every other that was trained as long."""
    confidence: float | None
    """With which the intervals of all comparisons hold together."""
    named: tuple[Named, ...]
    """What would be recommended under other objectives, from the same trials."""
    finish: Finish | None
    """How long the whole training takes, and what it costs."""
    resources: Resources | None
    """What the whole training asks of a scheduler: GPUs, memory, time, with margins."""
    stopped: str | None
    """Why the search ended."""
    evidence: Measurement
    estimate: Estimate | None
    """What a dry run had told of speed and memory before they were measured."""
    quality_measured: bool
    """False where no training finished, or the model had no weights: the score rests on the other parts."""
    wall_s: float
    measured_s: float
    evaluation_s: float
    """Part of the wall time in which trainings were judged on held-out rows; no part of ``measured_s``."""
    overhead_share: float | None
    """Share of the study's wall time outside measured steps."""
    adapter_config: dict[str, Any] | None
    """PEFT's ``adapter_config.json``; null where every weight is trained."""
    baseline: BaselineDocument | None
    """What became of the configuration that was trained with before; null where none was given."""
    links: StudyLinks

    @classmethod
    def of(
        cls,
        recommendation: Recommendation,
        *,
        adapter_config: dict[str, Any] | None,
        resources: Resources | None,
        baseline: BaselineDocument | None = None,
    ) -> RecommendationDocument:
        """A stored recommendation with its export."""
        return cls(
            **fields_of(recommendation),
            candidate_id=recommendation.candidate.id,
            description=recommendation.candidate.describe(),
            overhead_share=recommendation.overhead_share,
            adapter_config=adapter_config,
            resources=resources,
            baseline=baseline,
            links=StudyLinks.of(recommendation.study_id),
        )

    def to_recommendation(self) -> Recommendation:
        """The stored form again."""
        names = (field.name for field in dataclasses.fields(Recommendation))
        return Recommendation(**{name: getattr(self, name) for name in names})


class DifferenceDocument(Document):
    """What changed from one study to another of the same model and rows."""

    then_id: str
    now_id: str
    same_environment: bool
    environment: tuple[EnvironmentChange, ...]
    shapes: tuple[ShapeChange, ...]
    """What both measured."""
    only_then: int
    only_now: int
    recommended_then: str | None
    recommended_now: str | None
    recommendation_changed: bool | None
    """Null where either recommends nothing."""
    notes: tuple[str, ...]
    """What else makes figures differ, in sentences."""

    @classmethod
    def of(cls, difference: Difference) -> DifferenceDocument:
        """As it was found."""
        return cls(**fields_of(difference))
