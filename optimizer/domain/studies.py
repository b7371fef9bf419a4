"""What is asked for, what was found of it, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from ...probes.asked import Asked
from ...probes.profiles import DatasetProfile, HardwareProfile, ModelProfile
from .candidates import Adapter, OwnLora, Recipe
from .words import Complexity, LossMask, Method, Objective, Preset, Quantization, Scoring, StudyState


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much speed, memory and quality count. Any non-negative numbers; only ratios matter."""

    speed: float
    memory: float
    quality: float


OBJECTIVE_WEIGHTS: Mapping[Objective, Weights] = {
    # Memory that is left over buys nothing: what does not fit is out, whatever its weight.
    Objective.BALANCED: Weights(speed=0.5, memory=0.05, quality=0.45),
    Objective.SPEED: Weights(speed=0.8, memory=0.1, quality=0.1),
    Objective.QUALITY: Weights(speed=0.1, memory=0.1, quality=0.8),
    Objective.MEMORY: Weights(speed=0.1, memory=0.8, quality=0.1),
    Objective.COST: Weights(speed=0.9, memory=0.0, quality=0.1),
}


QUALITY_WITHIN: Mapping[Objective, float | None] = {
    Objective.BALANCED: 0.01,
    Objective.SPEED: None,
    Objective.QUALITY: 0.0,
    Objective.MEMORY: None,
    Objective.COST: 0.03,
}
"""How much more held-out loss than the best, as a share of it, an objective lets pass where it can be told
apart; None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The configuration that somebody trains with now, to be measured as it is and compared with."""

    name: str
    """Of the file, for people."""
    trainer: str
    """Whose words it was written in: one of ``trainers.reading.FORMATS``."""
    settings: Mapping[str, Any]
    """In the words of ``trainers.settings``, with the trainer's defaults."""
    said: tuple[str, ...] = ()
    """The settings that the file itself names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRequest:
    """What the user asked for. Paths as written; everything else with defaults filled in."""

    model: str
    dataset: str
    objective: Objective = Objective.BALANCED
    weights: Weights | None = None
    """Overrides the objective's weights."""
    scoring: Scoring = Scoring.COMPARABLE
    memory_limit_bytes: int | None = None
    finish_limit_s: float | None = None
    """The whole training has to be done within this."""
    quality_within: float | None = None
    """How much more held-out loss than the best may be, as a share; None: what the objective lets pass."""
    price_per_hour: float | None = None
    """Of a device, in whatever currency."""
    processes: int | None = None
    """That trainings may be spread over, one a device, beside single ones; 1: none is spread. None: as many
    as there are free GPUs of the same kind, where that can help; on a CPU one."""
    budget_s: float = 600.0
    max_trials: int = 64
    seed: int = 0
    text_column: str | None = None
    label_column: str | None = None
    task: str | None = None
    max_length: int | None = None
    effective_batch: int = 16
    epochs: float = 3.0
    methods: tuple[Method, ...] = ()
    """Restricts the search to these methods; empty means those that are tried unasked."""
    quantizations: tuple[Quantization, ...] = ()
    """Restricts the search to these; empty means all."""
    presets: tuple[Preset, ...] = ()
    """Tried first, in this order."""
    lora: OwnLora | None = None
    """Tried before the presets."""
    only_presets: bool = False
    """Only the presets and ``lora``, and nothing after them."""
    use_tiers: bool = False
    """Only the candidates that the first design fixed for the free memory (``optimizer/tiers.py``)."""
    complexity: Complexity | None = None
    """Asked by the tiers only."""
    context_column: str | None = None
    target_column: str | None = None
    packing: bool | None = None
    """None: where it saves a good part of the padding and the model's attention can."""
    loss_mask: LossMask | None = None
    """None: what suits the task."""
    chat_template: str | None = None
    """Path of a Jinja template to use in place of the tokenizer's."""
    time_column: str | None = None
    """Of a series: what orders its rows. Of texts: the last ones in time are held out."""
    channels: tuple[str, ...] = ()
    """Of a series: the columns that are its values; empty means all that hold numbers."""
    context_length: int | None = None
    """Of a series: rows that the model sees; None for what the model was made for."""
    prediction_length: int | None = None
    """Of a series: rows that it is to predict from them."""
    group_column: str | None = None
    """Rows with the same value here are held out together, or not at all."""
    eval_command: tuple[str, ...] = ()
    """A program and its arguments that judges a trained adapter: it gets the folder and prints a number."""
    eval_lower_is_better: bool = False
    """Of that number."""
    baseline: Baseline | None = None
    """What is trained with now: tried before all else, and compared with what is recommended."""
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of a model that is made by a factory: what it is called with."""
    model_folder: str | None = field(default=None, metadata={"asked": False})
    """Where the factory's package is looked for first; nobody asks for it, it is where they asked."""

    @property
    def asked(self) -> Asked:
        """What the user named of the task and its columns."""
        return Asked(
            task=self.task,
            text_column=self.text_column,
            context_column=self.context_column,
            target_column=self.target_column,
            label_column=self.label_column,
            time_column=self.time_column,
            channels=self.channels,
            group_column=self.group_column,
        )

    @property
    def lets_pass(self) -> float | None:
        """How much more held-out loss than the best is as good, as a share of it; None: any."""
        if self.quality_within is not None or self.weights is not None:
            return self.quality_within
        return QUALITY_WITHIN[self.objective]

    @property
    def effective_weights(self) -> Weights:
        """The user's weights, else the objective's."""
        return self.weights or OBJECTIVE_WEIGHTS[self.objective]


ASKED_FIELDS = tuple(field for field in fields(StudyRequest) if field.metadata.get("asked", True))
"""Of a request, those that somebody can ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What earlier studies of the same structure and kind of task found of an adapter: a prior."""

    adapter: Adapter
    learning_rate: float
    """That suited it best, in the latest of them."""
    excess: float
    """Held-out loss over the lowest of each study, as a share of it, on average."""
    studies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFacts:
    """What the probes found for a study, with the recipe that was derived from it."""

    hardware: HardwareProfile
    model: ModelProfile
    dataset: DatasetProfile
    recipe: Recipe
    tokens_path: str
    pad_id: int
    """Token id that fills short rows up."""
    heldout_share: float
    """Share of rows held out, decided per row by a hash of its content and the study's seed; of a series, its
    last part."""
    train_rows: int
    heldout_rows: int
    truncated_rows: int
    truncated_tokens_share: float
    chat_template: str | None = None
    """The template's text, where it is not the tokenizer's own."""
    tokens_estimated: bool = False
    """No tokenizer was at hand: rows hold random tokens, one for every four characters."""
    known: tuple[Known, ...] = ()
    """From the store when the study began; orders what is tried, and counts for nothing else."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """What decides which rows are held out, as ``runners/recipe.py`` reads it. Empty in studies from before
    it was kept, where a hash and ``heldout_share`` do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One request and where it stands."""

    id: str
    request: StudyRequest
    state: StudyState
    created_at: datetime
    updated_at: datetime
    owner: str | None = None
    """Who asked for it over HTTP; None on a command line of this machine."""
    cancel_requested: bool = False
    facts: StudyFacts | None = None
    reason: str | None = None
    """Why it failed, or why it ended early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a study's history, numbered without gaps."""

    study_id: str
    seq: int
    kind: str
    payload: Mapping[str, Any]
    created_at: datetime
