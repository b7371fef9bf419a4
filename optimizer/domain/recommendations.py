"""What a study recommends, and by how much it is ahead of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .candidates import Candidate
from .measurements import Estimate, Measurement
from .studies import Weights
from .words import Relation, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrial:
    """A trial's place in a ranking."""

    trial_id: str
    number: int
    rank: int
    score: float
    parts: Mapping[str, float]
    """Each between 0 and 1 (``speed``, ``memory``, ``quality``); the literal terms under classic scoring."""
    on_pareto_front: bool
    tied_with_best: bool
    replicates: tuple[str, ...] = ()
    """All trials of this candidate that its figures are means of, this one included."""
    heldout_loss: float | None = None
    """Mean over the replicates."""
    is_as_good: bool = True
    """Its quality is what the objective, or the user, asks for; those of which it is not stand below."""
    finish_s: float | None = None
    """That the user's whole training would take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The recommended candidate's held-out loss against another's, on the same rows."""

    trial_id: str
    """Of the other."""
    difference: float
    """The recommended one's less the other's: negative where the recommended one learnt more."""
    low: float | None
    """The interval of the difference, wide enough to hold for all comparisons of the study together."""
    high: float | None
    relation: Relation
    """Of the recommended one to the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What would be recommended under another objective, from the same trials."""

    name: str
    """``balanced``, ``fastest``, ``smallest``, ``best quality``."""
    trial_id: str
    number: int
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What the user's whole training takes at the measured speed, evaluation and saving not counted."""

    steps: int
    seconds: float
    low_s: float
    high_s: float
    cost: float | None = None
    """Where a price is known, in its currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The chosen candidate with its evidence: a snapshot, stored once per finished study."""

    study_id: str
    trial_id: str
    candidate: Candidate
    evidence: Measurement
    score: float
    scoring: Scoring
    weights: Weights
    ranking: tuple[ScoredTrial, ...]
    """Comparable trials, best first."""
    reasons: tuple[str, ...]
    """Sentences for people: why this one, what was ruled out, what was not measured."""
    quality_measured: bool
    wall_s: float
    """Wall time from the study's first start to this recommendation, summed over its runs."""
    measured_s: float
    """Part of ``wall_s`` spent in steps that were timed or trained."""
    evaluation_s: float = 0.0
    """Part of ``wall_s`` in which trainings were judged on held-out rows; no part of ``measured_s``."""
    estimate: Estimate | None = None
    """What had been told of the candidate's memory and speed before it was measured."""
    comparisons: tuple[Comparison, ...] = ()
    """With every other candidate that was trained as long, in the order of the ranking."""
    confidence: float | None = None
    """With which the intervals of all comparisons hold together."""
    named: tuple[Named, ...] = ()
    finish: Finish | None = None
    stopped: str | None = None
    """Why the search ended, in a sentence."""

    @property
    def overhead_share(self) -> float | None:
        """Share of the wall time outside measured steps, evaluation on held-out rows among it."""
        return None if self.wall_s <= 0 else max(0.0, 1.0 - self.measured_s / self.wall_s)

    @property
    def evaluation_share(self) -> float | None:
        """Share of the wall time in which trainings were judged on held-out rows."""
        return None if self.wall_s <= 0 else self.evaluation_s / self.wall_s
