"""The wire: what HTTP requests and responses look like, and how they map to the domain's types.

Times are ISO 8601 in UTC, sizes bytes, durations seconds; unknown is null, never 0 or NaN. Knows nothing
of routes, the store or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ..errors import InputError
from ..optimizer.domain import (
    SCHEMA_VERSION,
    Candidate,
    Event,
    Measurement,
    Method,
    Objective,
    Outcome,
    Recipe,
    Recommendation,
    Rung,
    ScoredTrial,
    Scoring,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialState,
    Weights,
)
from ..probes.profiles import GpuProfile, HardwareProfile, HostProfile, LengthProfile, TaskKind, TaskProfile
from .submission import BOUNDS
from .units import parse_bytes, parse_seconds

POINTERS = {
    "model": "/model",
    "dataset": "/dataset",
    "weights": "/weights",
    "seed": "/seed",
    "memory_limit_bytes": "/constraints/memory_limit",
    "max_length": "/constraints/max_length",
    "budget_s": "/budget/seconds",
    "max_trials": "/budget/max_trials",
    "effective_batch": "/effective_batch",
    "epochs": "/epochs",
}
"""Where the body of ``POST /v1/studies`` holds each checked field of :class:`StudyRequest`."""

UNIT_ERROR = "unit"
"""Type of the validation errors about sizes and durations; their message shows the value itself."""


def _within(field: str) -> Any:
    """The bounds of a field of StudyRequest as a pydantic field."""
    bounds = BOUNDS[field]
    return Field(ge=bounds.minimum, le=bounds.maximum)


def _parsed_by(parse: Callable[[Any], float], *, written_as: Any) -> BeforeValidator:
    """Read sizes and durations as people write them, and report what is wrong as pydantic does."""

    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except InputError as error:
            raise PydanticCustomError(
                UNIT_ERROR, "{message}", {"message": error.message, "next_step": error.next_step}
            ) from error

    return BeforeValidator(validate, json_schema_input_type=written_as)


Size = Annotated[int, _parsed_by(parse_bytes, written_as=int | str)]
Duration = Annotated[float, _parsed_by(parse_seconds, written_as=float | str)]
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Source = Annotated[str, Field(min_length=1, max_length=4096)]
Column = Annotated[str, Field(min_length=1, max_length=1024)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class WeightsBody(_Body):
    """How much speed, memory and quality count; only ratios matter."""

    speed: Annotated[Number, Field(ge=0)]
    memory: Annotated[Number, Field(ge=0)]
    quality: Annotated[Number, Field(ge=0)]


class ConstraintsBody(_Body):
    """What the recommended configuration must keep to."""

    memory_limit: Size | None = None
    """Bytes, or text such as ``"10GiB"``."""
    max_length: Annotated[Count, _within("max_length")] | None = None
    """Tokens per row; longer rows are cut. Derived from the data if left out."""


class BudgetBody(_Body):
    """What the study may cost."""

    seconds: Duration = 600.0
    """Seconds, or text such as ``"10m"``."""
    max_trials: Annotated[Count, _within("max_trials")] = 16


class StudyBody(_Body):
    """A model, a dataset, and what is wanted of the fine-tuning."""

    model: Source
    """Folder of a model with safetensors weights, or a hub id."""
    dataset: Source
    """CSV or JSON Lines file."""
    objective: Objective = Objective.BALANCED
    weights: WeightsBody | None = None
    """Overrides the objective's weights."""
    scoring: Scoring = Scoring.COMPARABLE
    constraints: ConstraintsBody = ConstraintsBody()
    budget: BudgetBody = BudgetBody()
    seed: Annotated[Count, _within("seed")] = 0
    task: TaskKind | None = None
    """Derived from the columns if left out."""
    text_column: Column | None = None
    label_column: Column | None = None
    effective_batch: Annotated[Count, _within("effective_batch")] = 16
    epochs: Annotated[Number, _within("epochs")] = 3.0
    methods: tuple[Method, ...] = ()
    """Only these methods; empty means all."""

    def to_request(self) -> StudyRequest:
        """The domain's form."""
        return StudyRequest(
            model=self.model,
            dataset=self.dataset,
            objective=self.objective,
            weights=Weights(**self.weights.model_dump()) if self.weights else None,
            scoring=self.scoring,
            memory_limit_bytes=self.constraints.memory_limit,
            budget_s=self.budget.seconds,
            max_trials=self.budget.max_trials,
            seed=self.seed,
            text_column=self.text_column,
            label_column=self.label_column,
            task=self.task,
            max_length=self.constraints.max_length,
            effective_batch=self.effective_batch,
            epochs=self.epochs,
            methods=self.methods,
        )

    @classmethod
    def from_request(cls, request: StudyRequest) -> StudyBody:
        """The wire's form of a stored request; trusted, so nothing is validated again."""
        return cls.model_construct(
            model=request.model,
            dataset=request.dataset,
            objective=request.objective,
            weights=WeightsBody.model_validate(request.weights, from_attributes=True)
            if request.weights
            else None,
            scoring=request.scoring,
            constraints=ConstraintsBody.model_construct(
                memory_limit=request.memory_limit_bytes, max_length=request.max_length
            ),
            budget=BudgetBody.model_construct(seconds=request.budget_s, max_trials=request.max_trials),
            seed=request.seed,
            task=TaskKind(request.task) if request.task else None,
            text_column=request.text_column,
            label_column=request.label_column,
            effective_batch=request.effective_batch,
            epochs=request.epochs,
            methods=request.methods,
        )


STUDY_EXAMPLES: dict[str, Any] = {
    "smallest": {
        "summary": "A model and a dataset; everything else is derived",
        "value": {"model": "models/bert-mini", "dataset": "data/reviews.csv"},
    },
    "constrained": {
        "summary": "Quality first, below 10 GiB, at most ten minutes",
        "value": {
            "model": "models/bert-mini",
            "dataset": "data/reviews.csv",
            "objective": "quality",
            "constraints": {"memory_limit": "10GiB", "max_length": 256},
            "budget": {"seconds": "10m", "max_trials": 12},
            "methods": ["lora", "ia3"],
        },
    },
}


def _fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as a mapping, one level deep; a document takes the fields that it has a place for."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _Document(_Part):
    schema_version: int = SCHEMA_VERSION


class StudyLinks(_Part):
    """Where a study's parts are."""

    self: str
    trials: str
    recommendation: str
    events: str

    @classmethod
    def of(cls, study_id: str) -> StudyLinks:
        """The links of one study."""
        base = study_path(study_id)
        return cls(
            self=base,
            trials=f"{base}/trials",
            recommendation=f"{base}/recommendation",
            events=f"{base}/events",
        )


class Progress(_Part):
    """How many of the trials that were planned so far are done; the search may plan more."""

    planned: int
    running: int
    finished: int

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Progress:
        """Counted over all trials of a study."""
        states = [trial.state for trial in trials]
        return cls(
            planned=len(states),
            running=states.count(TrialState.RUNNING),
            finished=states.count(TrialState.FINISHED),
        )


class ModelSummary(_Part):
    """The model as it was inspected, without its list of modules."""

    source: str
    path: str
    revision: str | None
    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    layers: int | None
    hidden_size: int | None


class DatasetSummary(_Part):
    """The dataset as it was read."""

    source: str
    path: str
    sha256: str
    format: str
    size_bytes: int
    rows: int
    usable_rows: int
    duplicate_rows: int | None
    columns: tuple[str, ...]
    task: TaskProfile
    lengths: LengthProfile | None


class FactsSummary(_Part):
    """What the probes found for a study."""

    model: ModelSummary
    dataset: DatasetSummary
    recipe: Recipe
    train_rows: int
    heldout_rows: int
    truncated_rows: int
    truncated_tokens_share: float
    devices: tuple[str, ...]
    """Names of the GPUs; the processor's where there is none."""

    @classmethod
    def of(cls, facts: StudyFacts) -> FactsSummary:
        """Every field that has a place on the wire."""
        host = facts.hardware.host
        return cls(
            **_fields_of(facts)
            | {
                "model": ModelSummary.model_validate(facts.model, from_attributes=True),
                "dataset": DatasetSummary.model_validate(facts.dataset, from_attributes=True),
                "devices": [gpu.name for gpu in facts.hardware.gpus] or [host.cpu_model or host.platform],
            }
        )


class StudyDocument(_Document):
    """A study and where it stands."""

    id: str
    state: StudyState
    reason: str | None
    """Why it failed, or why it ended early."""
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    request: StudyBody
    progress: Progress
    facts: FactsSummary | None
    """Null until the probes have run."""
    links: StudyLinks

    @classmethod
    def of(cls, study: Study, trials: Sequence[Trial]) -> StudyDocument:
        """A study with its trials counted."""
        return cls(
            **_fields_of(study)
            | {
                "request": StudyBody.from_request(study.request),
                "progress": Progress.of(trials),
                "facts": FactsSummary.of(study.facts) if study.facts else None,
                "links": StudyLinks.of(study.id),
            }
        )


class StudyList(_Document):
    """Studies, newest first."""

    studies: tuple[StudyDocument, ...]
    next: str | None
    """Where the older ones are; null at the end."""


class TrialDocument(_Part):
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
    candidate_id: str
    candidate: Candidate
    description: str
    measurement: Measurement | None
    wall_s: float | None
    started_at: datetime | None
    finished_at: datetime | None
    log_tail: str | None

    @classmethod
    def of(cls, trial: Trial) -> TrialDocument:
        """The plan and what came of it, side by side."""
        return cls(
            **_fields_of(trial),
            rung=trial.plan.rung,
            replicate=trial.plan.replicate,
            train_steps=trial.plan.train_steps,
            purpose=trial.plan.reason,
            candidate_id=trial.candidate.id,
            candidate=trial.candidate,
            description=trial.candidate.describe(),
        )


class TrialList(_Document):
    """A study's trials in the order of planning."""

    study_id: str
    trials: tuple[TrialDocument, ...]
    links: StudyLinks


class RecommendationDocument(_Document):
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
    evidence: Measurement
    quality_measured: bool
    wall_s: float
    measured_s: float
    overhead_share: float | None
    """Share of the study's wall time outside measured steps."""
    adapter_config: dict[str, Any] | None
    """PEFT's ``adapter_config.json``; null where every weight is trained."""
    links: StudyLinks

    @classmethod
    def of(
        cls, recommendation: Recommendation, *, adapter_config: dict[str, Any] | None
    ) -> RecommendationDocument:
        """A stored recommendation with its export."""
        return cls(
            **_fields_of(recommendation),
            candidate_id=recommendation.candidate.id,
            description=recommendation.candidate.describe(),
            overhead_share=recommendation.overhead_share,
            adapter_config=adapter_config,
            links=StudyLinks.of(recommendation.study_id),
        )


class EventDocument(_Part):
    """One line of a study's history."""

    seq: int
    kind: str
    created_at: datetime
    payload: dict[str, Any]


class EventList(_Document):
    """A study's history after some event, in order."""

    study_id: str
    events: tuple[EventDocument, ...]
    last_seq: int
    """Pass it as ``after`` to read on."""
    links: StudyLinks

    @classmethod
    def of(cls, study_id: str, events: Sequence[Event], *, after: int) -> EventList:
        """One page of events."""
        return cls(
            study_id=study_id,
            events=tuple(EventDocument.model_validate(event, from_attributes=True) for event in events),
            last_seq=events[-1].seq if events else after,
            links=StudyLinks.of(study_id),
        )


class HardwareDocument(_Document):
    """What trials would run on, read just now."""

    host: HostProfile
    gpus: tuple[GpuProfile, ...]
    gpu_note: str | None
    """Why ``gpus`` is empty."""

    @classmethod
    def of(cls, hardware: HardwareProfile) -> HardwareDocument:
        """The profile as it is."""
        return cls(host=hardware.host, gpus=hardware.gpus, gpu_note=hardware.gpu_note)


class HealthDocument(_Document):
    """The server answers; whether studies are being worked on."""

    status: Literal["ok"] = "ok"
    version: str
    supervisor: str


def study_path(study_id: str) -> str:
    """Where one study is."""
    return f"/v1/studies/{study_id}"
