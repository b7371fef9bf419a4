"""Trials, and candidates that none was made of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ...optimizer.domain import (
    Candidate,
    Estimate,
    Measurement,
    Outcome,
    Rung,
    Trial,
    TrialState,
)
from ...optimizer.estimates.intervals import Fits
from .parts import Document, Part, StudyLinks, fields_of


class TrialDocument(Part):
    """A trial and where it stands."""

    id: str
    number: int
    rung: Rung
    replicate: int
    train_steps: int
    purpose: str
    """Why the search asked for it."""
    state: TrialState
    attempts: int
    outcome: Outcome | None
    reason: str | None
    reused_from: str | None
    """The trial, of any study, that measured this before; nothing was run for this one."""
    candidate_id: str
    candidate: Candidate
    description: str
    estimate: Estimate | None
    """What a dry run had told of speed and memory before they were measured."""
    measurement: Measurement | None
    wall_s: float | None
    started_at: datetime | None
    finished_at: datetime | None
    log_tail: str | None

    @classmethod
    def of(cls, trial: Trial) -> TrialDocument:
        """The plan and what came of it, side by side."""
        return cls(
            **fields_of(trial),
            rung=trial.plan.rung,
            replicate=trial.plan.replicate,
            train_steps=trial.plan.train_steps,
            purpose=trial.plan.reason,
            candidate_id=trial.candidate.id,
            candidate=trial.candidate,
            description=trial.candidate.describe(),
        )


class RuledOut(Part):
    """A candidate that is not run, because a dry run told that it cannot fit."""

    candidate_id: str
    candidate: Candidate
    description: str
    estimate: Estimate

    @classmethod
    def among(cls, estimates: Mapping[Candidate, Estimate]) -> tuple[RuledOut, ...]:
        """Those of which that was told."""
        return tuple(
            cls(
                candidate_id=candidate.id,
                candidate=candidate,
                description=candidate.describe(),
                estimate=estimate,
            )
            for candidate, estimate in estimates.items()
            if estimate.fits is Fits.NO
        )


class TrialList(Document):
    """A page of a study's trials, in the order of planning if not asked for in another."""

    study_id: str
    trials: tuple[TrialDocument, ...]
    ruled_out: tuple[RuledOut, ...]
    """What no trial was made of; with the first page only, the first thousand."""
    next: str | None = None
    """Where the next page is; null at the end."""
    next_cursor: str | None = None
    """The same as ``cursor`` takes it."""
    links: StudyLinks
