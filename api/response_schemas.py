"""The wire, outwards: studies, trials, recommendations and hardware as JSON documents.

Times are ISO 8601 in UTC, sizes bytes, durations seconds; unknown is null, never 0 or NaN. Knows nothing
of routes, the store or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..optimizer.domain import (
    SCHEMA_VERSION,
    Candidate,
    Event,
    Measurement,
    Outcome,
    Recipe,
    Recommendation,
    Rung,
    ScoredTrial,
    Scoring,
    Study,
    StudyFacts,
    StudyState,
    Trial,
    TrialState,
    Weights,
)
from ..probes.profiles import GpuProfile, HardwareProfile, HostProfile, LengthProfile, TaskProfile
from .request_schemas import StudyBody


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
    max_positions: int | None
    has_weights: bool
    """False where only a configuration is at hand: trials run on random weights, quality is not measured."""
    is_encoder_decoder: bool
    attention_kernels: tuple[str, ...]
    """What there is for this model, preferred first."""
    supports_gradient_checkpointing: bool
    supports_packing: bool
    runs_remote_code: bool


class DatasetSummary(_Part):
    """The dataset as it was read."""

    source: str
    path: str
    sha256: str
    format: str
    size_bytes: int
    revision: str | None
    """Commit on the hub; null for local data."""
    rows: int
    usable_rows: int
    every_nth_row: int
    """Above 1 the data are so large that only every nth row was looked at, and is used."""
    duplicate_rows: int | None
    columns: tuple[str, ...]
    task: TaskProfile
    label_counts: Mapping[str, int]
    lengths: LengthProfile | None
    """Tokens per row before any truncation."""


class FactsSummary(_Part):
    """What the probes found for a study."""

    model: ModelSummary
    dataset: DatasetSummary
    recipe: Recipe
    train_rows: int
    heldout_rows: int
    truncated_rows: int
    truncated_tokens_share: float
    tokens_estimated: bool
    """No tokenizer was at hand: a token is taken to have four characters."""
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
    reused_from: str | None
    """The trial, of any study, that measured this before; nothing was run for this one."""
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
    """False where no training finished, or the model had no weights: the score rests on the other parts."""
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
