"""A study and where it stands, with what its probes found."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ...optimizer.domain import (
    Recipe,
    Study,
    StudyFacts,
    StudyState,
    TrialState,
)
from ...probes.profiles import LengthProfile, TaskProfile
from ..request_schemas import StudyBody
from .parts import Document, Part, StudyLinks, fields_of


class Progress(Part):
    """How many of the trials that were planned so far are done; the search may plan more."""

    planned: int
    running: int
    finished: int

    @classmethod
    def of(cls, counts: Mapping[TrialState, int]) -> Progress:
        """From how many of a study's trials are in each state; none where a state is left out."""
        return cls(
            planned=sum(counts.values()),
            running=counts.get(TrialState.RUNNING, 0),
            finished=counts.get(TrialState.FINISHED, 0),
        )


class ModelSummary(Part):
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


class DatasetSummary(Part):
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
    notes: tuple[str, ...]
    """What was left out and why, in sentences."""


class FactsSummary(Part):
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
            **fields_of(facts)
            | {
                "model": ModelSummary.model_validate(facts.model, from_attributes=True),
                "dataset": DatasetSummary.model_validate(facts.dataset, from_attributes=True),
                "devices": [gpu.name for gpu in facts.hardware.gpus] or [host.cpu_model or host.platform],
            }
        )


class StudyDocument(Document):
    """A study and where it stands."""

    id: str
    state: StudyState
    reason: str | None
    """Why it failed, or why it ended early."""
    owner: str | None = None
    """The name that its token was given; null for those asked for on the server's own command line."""
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    request: StudyBody
    progress: Progress
    facts: FactsSummary | None
    """Null until the probes have run."""
    links: StudyLinks

    @classmethod
    def of(cls, study: Study, counts: Mapping[TrialState, int]) -> StudyDocument:
        """A study with the numbers of its trials by state."""
        return cls(
            **fields_of(study)
            | {
                "request": StudyBody.from_request(study.request),
                "progress": Progress.of(counts),
                "facts": FactsSummary.of(study.facts) if study.facts else None,
                "links": StudyLinks.of(study.id),
            }
        )


class StudyList(Document):
    """A page of studies, newest first if not asked for in another order."""

    studies: tuple[StudyDocument, ...]
    next: str | None
    """Where the next page is; null at the end."""
    next_cursor: str | None = None
    """The same as ``cursor`` takes it."""
