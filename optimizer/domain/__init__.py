"""The vocabulary of rankwise as small frozen types; each candidate knows its own id.

Edges (API, command line, store, job reports) turn JSON into these types with :func:`~..codec.from_json`,
which validates; code behind the edges trusts them. Knows nothing about processes, databases or torch.
"""

from .candidates import CANDIDATE_VERSION, Adapter, Candidate, Level, OwnLora, Recipe
from .measurements import Estimate, HeldoutScores, Measurement, RankMeasurement
from .recommendations import Comparison, Finish, Named, Recommendation, ScoredTrial
from .studies import (
    ASKED_FIELDS,
    OBJECTIVE_WEIGHTS,
    QUALITY_WITHIN,
    Baseline,
    Event,
    Known,
    Study,
    StudyFacts,
    StudyRequest,
    Weights,
)
from .trials import Trial, TrialPlan
from .words import (
    Complexity,
    LossMask,
    Method,
    Objective,
    Outcome,
    Preset,
    Quantization,
    Relation,
    Rung,
    Scoring,
    StudyState,
    TrialState,
)

SCHEMA_VERSION = 1
"""Version of every file and message that carries ``schema_version``."""


__all__ = [
    "ASKED_FIELDS",
    "CANDIDATE_VERSION",
    "OBJECTIVE_WEIGHTS",
    "QUALITY_WITHIN",
    "SCHEMA_VERSION",
    "Adapter",
    "Baseline",
    "Candidate",
    "Comparison",
    "Complexity",
    "Estimate",
    "Event",
    "Finish",
    "HeldoutScores",
    "Known",
    "Level",
    "LossMask",
    "Measurement",
    "Method",
    "Named",
    "Objective",
    "Outcome",
    "OwnLora",
    "Preset",
    "Quantization",
    "RankMeasurement",
    "Recipe",
    "Recommendation",
    "Relation",
    "Rung",
    "ScoredTrial",
    "Scoring",
    "Study",
    "StudyFacts",
    "StudyRequest",
    "StudyState",
    "Trial",
    "TrialPlan",
    "TrialState",
    "Weights",
]
