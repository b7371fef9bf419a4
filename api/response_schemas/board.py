"""A study as tables and plots show it: a row for each trial, and how the compared candidates stand."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ...optimizer.domain import (
    Objective,
    Scoring,
    Weights,
)
from ...optimizer.overview import Stage
from ...store.figures import Figures
from ..wording import describe_batch
from .parts import Document, Part

KEY_DIGITS = 16
DIGITS = 6
"""Of figures: thousands of them are sent."""
ROUGH_DIGITS = 4
"""Of what is known less well: estimates, and how sure figures are."""


class BoardColumn(StrEnum):
    """What is told of each trial, by the names of a trial's document; null where it is not known."""

    ID = "id"
    NUMBER = "number"
    RUNG = "rung"
    REPLICATE = "replicate"
    TRAIN_STEPS = "train_steps"
    STATE = "state"
    OUTCOME = "outcome"
    REASON = "reason"
    CANDIDATE_KEY = "candidate_key"
    """Of trainings: the beginning of the candidate's id, enough to tell those of a study apart."""
    ADAPTER = "adapter"
    SETTINGS = "settings"
    """What surrounds the adapter."""
    LEARNING_RATE = "learning_rate"
    WALL_S = "wall_s"
    TOKENS_PER_S = "tokens_per_s"
    SAMPLES_PER_S = "samples_per_s"
    """Where no tokens are counted."""
    PEAK_TENSOR_BYTES = "peak_tensor_bytes"
    PEAK_ALLOCATED_BYTES = "peak_allocated_bytes"
    PEAK_RESERVED_BYTES = "peak_reserved_bytes"
    PEAK_DEVICE_BYTES = "peak_device_bytes"
    PEAK_PROCESS_BYTES = "peak_process_bytes"
    TRAINABLE_PARAMS = "trainable_params"
    HELDOUT_LOSS = "heldout_loss"
    METRIC_NAME = "metric_name"
    METRIC_VALUE = "metric_value"
    TOKENS_PER_S_REL_HALFWIDTH = "tokens_per_s_rel_halfwidth"
    HELDOUT_LOSS_SE = "heldout_loss_se"
    TOLD_TENSOR_BYTES = "told_tensor_bytes"
    """What a dry run told before the trial ran, like those that follow."""
    TOLD_ALLOCATED_BYTES = "told_allocated_bytes"
    TOLD_RESERVED_BYTES = "told_reserved_bytes"
    TOLD_DEVICE_BYTES = "told_device_bytes"
    TOLD_PROCESS_BYTES = "told_process_bytes"


def _between(first: BoardColumn, last: BoardColumn) -> tuple[BoardColumn, ...]:
    names = tuple(BoardColumn)
    return names[names.index(first) : names.index(last) + 1]


_MEASURED = _between(BoardColumn.TOKENS_PER_S, BoardColumn.METRIC_VALUE)
_SURENESS = _between(BoardColumn.TOKENS_PER_S_REL_HALFWIDTH, BoardColumn.HELDOUT_LOSS_SE)
_TOLD = tuple(
    name.replace("told_", "peak_")
    for name in _between(BoardColumn.TOLD_TENSOR_BYTES, BoardColumn.TOLD_PROCESS_BYTES)
)


def board_row(figures: Figures) -> list[Any]:
    """A trial's values in the order of :class:`BoardColumn`."""
    candidate, measured, told = figures.candidate, figures.measured, figures.told
    row = [
        figures.stamp.trial_id,
        figures.number,
        figures.rung,
        figures.replicate,
        figures.train_steps,
        figures.stamp.state,
        figures.outcome,
        figures.stamp.reason,
        figures.candidate_id[:KEY_DIGITS] if figures.train_steps else None,
        candidate.adapter.describe(),
        describe_batch(candidate),
        candidate.learning_rate,
        _shortened(figures.wall_s),
    ]
    # Where tokens are counted, samples are not told: one speed is enough.
    passed_over = BoardColumn.SAMPLES_PER_S if measured.get(BoardColumn.TOKENS_PER_S) else None
    row += [None if name is passed_over else _shortened(measured.get(name)) for name in _MEASURED]
    row += [_shortened(measured.get(name), ROUGH_DIGITS) for name in _SURENESS]
    row += [_shortened(told.get(name), ROUGH_DIGITS) for name in _TOLD]
    return row


class BoardDocument(Document):
    """Trials of a study in figures."""

    study_id: str
    last_seq: int
    """Pass it as ``after`` to read what changes later."""
    columns: Mapping[BoardColumn, tuple[str | float | None, ...]]
    """Of each column a value for every trial, figures to six digits. Trials stand by number; with ``after``
    there are only those of which an event tells."""


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


def _shortened(value: Any, digits: int = DIGITS) -> Any:
    if value is None or isinstance(value, str):
        return value
    return type(value)(float(f"{value:.{digits}g}"))
