"""One run of one candidate: its plan, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .candidates import Candidate
from .measurements import Estimate, HeldoutScores, Measurement
from .words import Outcome, Rung, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """A trial that the search wants to see run."""

    candidate: Candidate
    rung: Rung
    replicate: int = 0
    train_steps: int = 0
    """Optimizer steps of a ``TRAIN`` trial; 0 for probes."""
    goal_steps: int = 0
    """Steps that the study's finalists are trained."""
    reason: str = ""
    """Why the search asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a candidate at one rung, and where it stands."""

    id: str
    study_id: str
    number: int
    """1, 2, 3 … in the order of planning, per study."""
    plan: TrialPlan
    state: TrialState
    attempts: int = 0
    outcome: Outcome | None = None
    reason: str | None = None
    measurement: Measurement | None = None
    log_tail: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    wall_s: float | None = None
    """From launch to the last report, everything included."""
    reused_from: str | None = None
    """The trial, of any study, that measured this shape in this environment; nothing was run for this one."""
    estimate: Estimate | None = None
    """What a dry run had told of its shape."""
    heldout: HeldoutScores | None = None
    """Row by row; None of probes, and where it was not asked for."""

    @property
    def candidate(self) -> Candidate:
        """The candidate that this trial runs."""
        return self.plan.candidate
