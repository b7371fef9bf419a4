"""A study as tables and plots show it: a row for each trial, and how the compared candidates stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...optimizer.domain import (
    Objective,
    Outcome,
    Rung,
    Scoring,
    TrialState,
    Weights,
)
from ...optimizer.overview import Stage
from ...store.figures import Figures
from ..wording import describe_batch
from .parts import Document, Part

_MEASURED = (
    "tokens_per_s",
    "samples_per_s",
    "tokens_per_s_rel_halfwidth",
    "peak_tensor_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_device_bytes",
    "peak_process_bytes",
    "trainable_params",
    "heldout_loss",
    "heldout_loss_se",
    "metric_name",
    "metric_value",
    "own_metric",
)
_TOLD = (
    "peak_tensor_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_device_bytes",
    "peak_process_bytes",
    "tokens_per_s",
)


KEY_DIGITS = 16
DIGITS = 6
"""Of figures: thousands of them are sent."""


class ToldFigures(Part):
    """What a dry run told of a trial before it ran; as in an estimate."""

    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    tokens_per_s: float | None = None


class BoardRow(Part):
    """A trial in figures, as in a trial's document: rounded to six digits, unknown ones left out."""

    id: str
    number: int
    rung: Rung
    replicate: int
    train_steps: int
    state: TrialState
    outcome: Outcome | None = None
    reason: str | None = None
    candidate_key: str | None = None
    """Of trainings: the beginning of the candidate's id, enough to tell those of a study apart."""
    adapter: str
    settings: str
    """What surrounds the adapter."""
    learning_rate: float
    tokens_per_s: float | None = None
    samples_per_s: float | None = None
    tokens_per_s_rel_halfwidth: float | None = None
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    trainable_params: int | None = None
    heldout_loss: float | None = None
    heldout_loss_se: float | None = None
    metric_name: str | None = None
    metric_value: float | None = None
    own_metric: float | None = None
    steps_recorded: int = 0
    """Training losses that the trial's document has."""
    disturbances: int = 0
    told: ToldFigures | None = None
    wall_s: float | None = None

    @classmethod
    def of(cls, figures: Figures) -> BoardRow:
        """The store's figures, by their names."""
        candidate, measured, told = figures.candidate, figures.measured, figures.told
        return cls(
            id=figures.stamp.trial_id,
            number=figures.number,
            rung=figures.rung,
            replicate=figures.replicate,
            train_steps=figures.train_steps,
            state=figures.stamp.state,
            outcome=figures.outcome,
            reason=figures.stamp.reason,
            candidate_key=figures.candidate_id[:KEY_DIGITS] if figures.train_steps else None,
            adapter=candidate.adapter.describe(),
            settings=describe_batch(candidate),
            learning_rate=candidate.learning_rate,
            **{name: _shortened(measured.get(name)) for name in _MEASURED},
            steps_recorded=len(measured.get("train_losses") or ()),
            disturbances=len(measured.get("disturbances") or ()),
            told=ToldFigures(**{name: _shortened(told.get(name)) for name in _TOLD}) if told else None,
            wall_s=_shortened(figures.wall_s),
        )


class BoardDocument(Document):
    """Trials of a study in figures."""

    study_id: str
    last_seq: int
    """Pass it as ``after`` to read what changes later."""
    rows: tuple[BoardRow, ...]
    """By number; with ``after`` only those of which an event tells."""


class StandingPlace(Part):
    """A compared candidate's place, and what a ranking by other weights needs of it."""

    trial_id: str
    number: int
    candidate_id: str
    rank: int
    score: float
    parts: Mapping[str, float]
    """As in a recommendation's ranking, before what is as good counts alike."""
    as_good: tuple[bool, ...]
    """Whether what it learnt is as good as is asked for, under each of ``lets_pass``."""
    trainable_params: int | None
    memory_bytes: int | None
    """Of the column that all compared candidates have; 0 decides no tie where there is none."""
    judged_loss: float | None
    speed: float | None
    speed_unit: str
    heldout_loss: float | None
    heldout_loss_se: float | None
    seeds: int
    on_pareto_front: bool
    tied_with_best: bool
    is_as_good: bool
    finish_s: float | None
    beside: str
    """How its quality stands to the best-ranked one's, in words."""


class ObjectiveWeights(Part):
    """A named objective: its weights, and which of ``lets_pass`` goes with it."""

    name: Objective
    weights: Weights
    lets_pass: int


class StandingsDocument(Document):
    """How a study's compared candidates stand now, and how all others became these."""

    study_id: str
    last_seq: int
    """Of the events that it takes into account."""
    scoring: Scoring
    weights: Weights
    lets_pass: tuple[float | None, ...]
    """How much more held-out loss than the best is as good, as a share of it; null: any. The first goes with
    weights of one's own."""
    asked: int
    """Which of them the study asks for."""
    objectives: tuple[ObjectiveWeights, ...]
    tie_points: float
    memory_limit_bytes: int | None
    device_bytes: int | None
    """The device's whole memory."""
    places: tuple[StandingPlace, ...]
    """Best first."""
    stages: tuple[Stage, ...]
    recommended: str | None
    """Id of the trial that the study recommends."""


def _shortened(value: Any) -> Any:
    return type(value)(float(f"{value:.{DIGITS}g}")) if isinstance(value, float | int) else value
