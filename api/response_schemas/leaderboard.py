"""The ranking of a study's candidates."""

from __future__ import annotations

from collections.abc import Mapping

from ...optimizer.domain import Scoring, Weights
from ...optimizer.overview import Place
from .parts import Document, Part, StudyLinks


class PlaceDocument(Part):
    """One compared candidate."""

    rank: int
    score: float
    parts: Mapping[str, float]
    """Each between 0 and 1; the literal terms under classic scoring."""
    is_recommended: bool
    on_pareto_front: bool
    tied_with_best: bool
    is_as_good: bool
    """What it learnt is as good as is asked for; those of which it is not stand below."""
    trial_id: str
    number: int
    candidate_id: str
    description: str
    speed: float | None
    speed_unit: str
    memory_bytes: int | None
    heldout_loss: float | None
    """Mean over the seeds."""
    seeds: int
    """Trainings that its figures are means of."""
    finish_s: float | None
    """That the whole training would take."""

    @classmethod
    def of(cls, place: Place) -> PlaceDocument:
        """The figures of one place."""
        scored, measured = place.scored, place.measurement
        return cls(
            rank=scored.rank,
            score=scored.score,
            parts=scored.parts,
            is_recommended=place.is_recommended,
            on_pareto_front=scored.on_pareto_front,
            tied_with_best=scored.tied_with_best,
            is_as_good=scored.is_as_good,
            trial_id=place.trial.id,
            number=place.trial.number,
            candidate_id=place.trial.candidate.id,
            description=place.trial.candidate.describe(),
            speed=measured.speed,
            speed_unit=measured.speed_unit,
            memory_bytes=measured.memory_bytes,
            heldout_loss=place.heldout_loss,
            seeds=place.seeds,
            finish_s=scored.finish_s,
        )


class LeaderboardDocument(Document):
    """What a study has compared so far, best first; what it recommends once it has succeeded."""

    study_id: str
    scoring: Scoring
    weights: Weights
    as_of_seq: int
    """The event after which it was worked out: large studies that run are not ranked anew at each."""
    compared: int
    """Of all pages."""
    places: tuple[PlaceDocument, ...]
    next_cursor: str | None
    links: StudyLinks
