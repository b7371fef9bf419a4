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

from ..optimizer.differences import Difference, EnvironmentChange, ShapeChange
from ..optimizer.domain import (
    SCHEMA_VERSION,
    Candidate,
    Comparison,
    Estimate,
    Event,
    Finish,
    Measurement,
    Named,
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
from ..optimizer.estimates.intervals import Fits
from ..optimizer.trainers.cells import Effect
from ..optimizer.trainers.formats import Format
from ..optimizer.verdicts import Proof, Support
from ..probes.profiles import GpuProfile, HardwareProfile, HostProfile, LengthProfile, TaskKind, TaskProfile
from ..runners.exporting import Export
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
    report: str
    exports: str
    """With the name of a format after it: ``…/exports/axolotl``."""

    @classmethod
    def of(cls, study_id: str) -> StudyLinks:
        """The links of one study."""
        base = study_path(study_id)
        return cls(
            self=base,
            trials=f"{base}/trials",
            recommendation=f"{base}/recommendation",
            events=f"{base}/events",
            report=f"{base}/report",
            exports=f"{base}/exports",
        )


class GapDocument(_Part):
    """A setting that a format cannot say."""

    setting: str
    value: Any
    reason: str
    """What its trainer does instead."""
    effect: Effect


class ExportDocument(_Document):
    """A training in the files of one format."""

    study_id: str
    trial_id: str
    """That measured it."""
    format: Format
    candidate: str
    """In words."""
    files: Mapping[str, str]
    """Name → text."""
    commands: tuple[tuple[str, ...], ...]
    """What to run beside the files, in this order: arguments, no shell text."""
    not_expressible: tuple[GapDocument, ...]
    warnings: tuple[str, ...]
    """What speaks against training with them: that the trial failed."""

    @classmethod
    def of(cls, exported: Export) -> ExportDocument:
        """What the files and commands are."""
        return cls(
            study_id=exported.study_id,
            trial_id=exported.trial_id,
            format=exported.form,
            candidate=exported.candidate.describe(),
            files=exported.files,
            commands=exported.commands,
            not_expressible=tuple(GapDocument(**_fields_of(gap)) for gap in exported.gaps),
            warnings=exported.warnings,
        )


class Progress(_Part):
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
    notes: tuple[str, ...]
    """What was left out and why, in sentences."""


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
    def of(cls, study: Study, counts: Mapping[TrialState, int]) -> StudyDocument:
        """A study with the numbers of its trials by state."""
        return cls(
            **_fields_of(study)
            | {
                "request": StudyBody.from_request(study.request),
                "progress": Progress.of(counts),
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
            **_fields_of(trial),
            rung=trial.plan.rung,
            replicate=trial.plan.replicate,
            train_steps=trial.plan.train_steps,
            purpose=trial.plan.reason,
            candidate_id=trial.candidate.id,
            candidate=trial.candidate,
            description=trial.candidate.describe(),
        )


class RuledOut(_Part):
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


class TrialList(_Document):
    """A study's trials in the order of planning."""

    study_id: str
    trials: tuple[TrialDocument, ...]
    ruled_out: tuple[RuledOut, ...]
    """What no trial was made of."""
    links: StudyLinks


class SettingChange(_Document):
    """One setting that the recommendation has otherwise than the baseline."""

    setting: str
    now: str
    then: str


class BaselineDocument(_Document):
    """What became of the configuration that is trained with now, and what changing it would bring."""

    name: str
    """Of its file."""
    trainer: str
    description: str | None = None
    candidate_id: str | None = None
    trials: tuple[int, ...] = ()
    """Numbers of those that measured it."""
    reason: str | None = None
    """Why it was not measured, without a full stop; null where it was."""
    is_recommended: bool = False
    times_as_fast: float | None = None
    """The recommended one, in tokens or samples a second."""
    memory_bytes: int | None = None
    """The baseline's peak."""
    memory_change_bytes: int | None = None
    """Negative where the recommended one needs less."""
    loss_difference: float | None = None
    """The recommended one's held-out loss less the baseline's, on the same rows."""
    loss_low: float | None = None
    loss_high: float | None = None
    relation: Literal["better", "worse", "no difference", "unknown"] | None = None
    """Of the recommended one's loss to the baseline's; null where the baseline was not trained as long."""
    changes: tuple[SettingChange, ...] = ()
    sentences: tuple[str, ...] = ()
    """The same for people."""


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
    comparisons: tuple[Comparison, ...]
    """Held-out loss of the recommended candidate against every other that was trained as long."""
    confidence: float | None
    """With which the intervals of all comparisons hold together."""
    named: tuple[Named, ...]
    """What would be recommended under other objectives, from the same trials."""
    finish: Finish | None
    """How long the whole training takes, and what it costs."""
    stopped: str | None
    """Why the search ended."""
    evidence: Measurement
    estimate: Estimate | None
    """What a dry run had told of speed and memory before they were measured."""
    quality_measured: bool
    """False where no training finished, or the model had no weights: the score rests on the other parts."""
    wall_s: float
    measured_s: float
    evaluation_s: float
    """Part of the wall time in which trainings were judged on held-out rows; no part of ``measured_s``."""
    overhead_share: float | None
    """Share of the study's wall time outside measured steps."""
    adapter_config: dict[str, Any] | None
    """PEFT's ``adapter_config.json``; null where every weight is trained."""
    baseline: BaselineDocument | None
    """What became of the configuration that was trained with before; null where none was given."""
    links: StudyLinks

    @classmethod
    def of(
        cls,
        recommendation: Recommendation,
        *,
        adapter_config: dict[str, Any] | None,
        baseline: BaselineDocument | None = None,
    ) -> RecommendationDocument:
        """A stored recommendation with its export."""
        return cls(
            **_fields_of(recommendation),
            candidate_id=recommendation.candidate.id,
            description=recommendation.candidate.describe(),
            overhead_share=recommendation.overhead_share,
            adapter_config=adapter_config,
            baseline=baseline,
            links=StudyLinks.of(recommendation.study_id),
        )


class DifferenceDocument(_Document):
    """What changed from one study to another of the same model and rows."""

    then_id: str
    now_id: str
    same_environment: bool
    environment: tuple[EnvironmentChange, ...]
    shapes: tuple[ShapeChange, ...]
    """What both measured."""
    only_then: int
    only_now: int
    recommended_then: str | None
    recommended_now: str | None
    recommendation_changed: bool | None
    """Null where either recommends nothing."""
    notes: tuple[str, ...]
    """What else makes figures differ, in sentences."""

    @classmethod
    def of(cls, difference: Difference) -> DifferenceDocument:
        """As it was found."""
        return cls(**_fields_of(difference))


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


class Between(_Part):
    """The middle of what is expected, and the ends that hold it nine times in ten."""

    low: float
    mid: float
    high: float


class GpuChoice(_Part):
    """A GPU of the catalogue on which a candidate fits."""

    gpu: str
    capacity_bytes: int
    device_bytes: int
    device_bytes_low: int
    device_bytes_high: int
    max_micro_batch: int | None
    tokens_per_second: Between | None
    hours: Between | None


class EstimateDocument(_Document):
    """What a candidate would need and how fast it would be, worked out without a GPU."""

    model: ModelSummary
    task: TaskKind
    asked: Mapping[str, Any]
    """Every option as it was understood, defaults filled in; ``tokens`` are those of all epochs."""
    candidate: Candidate
    description: str
    stack: Mapping[str, str]
    """Library → version: what they do between versions makes the difference of whole copies."""
    gpu: str | None
    """The catalogue's name of the GPU that was asked about, or the smallest one that fits."""
    gpu_sources: tuple[str, ...]
    """Where the GPU's figures come from."""
    gpus: int
    """Processes that the training is divided among; all sizes and speeds are those of one."""
    capacity_bytes: int | None
    """What the process may hold on the device; null without a limit."""
    fits: Literal["yes", "no", "too-close"] | None
    """Yes and no where both ends of the interval agree; null without a limit."""
    peak_allocated_bytes: int
    """``torch.cuda.max_memory_allocated``."""
    peak_allocated_bytes_low: int
    peak_allocated_bytes_high: int
    peak_reserved_bytes: int
    """``torch.cuda.max_memory_reserved``."""
    peak_reserved_bytes_low: int
    peak_reserved_bytes_high: int
    device_bytes: int
    """As ``nvidia-smi`` shows the process."""
    device_bytes_low: int
    device_bytes_high: int
    calibrated: bool
    """The intervals rest on enough measurements to hold nine times in ten."""
    phases: Mapping[str, int]
    """Most bytes that are allocated in each phase."""
    breakdown: Mapping[str, int]
    """What ``device_bytes`` are for at the peak, largest first; they add up to it."""
    max_micro_batch: int | None
    """Rows that surely fit; null without a limit, or where not even one does."""
    max_seq_len: int | None
    """Tokens a row that surely fit at the batch that was asked for; null as for the batch."""
    tokens_per_second: Between | None
    """Padding included; null without a GPU of the catalogue, or where it has no unit for the dtype."""
    hours: Between | None
    """For the tokens and epochs that were asked about, by all GPUs together."""
    sent_bytes: int
    """That each GPU sends to the others in an optimizer step, all its micro-batches."""
    offloaded_bytes: int
    """That go to the host and back in such a step, for each GPU, because of offloading."""
    sending_seconds: Between | None
    """Of both in such a step, on the slowest and the fastest use of links that was seen; null without a GPU
    of the catalogue, or where nothing is sent."""
    sending_share: Between | None
    """Of the time of such a step, if nothing of it is hidden behind computing."""
    trainable_params: int
    choices: tuple[GpuChoice, ...]
    """GPUs on which it fits, the smallest first; empty unless that was asked."""
    notes: tuple[str, ...]
    """What else there is to know, in sentences."""
    seconds_spent: float


class MethodVerdict(_Part):
    """What a model takes of one method."""

    supported: bool
    support: Support
    reason: str | None
    """Why not, or what to know."""
    modules: tuple[str, ...]
    """What is adapted: PEFT's ``target_modules``."""
    pattern: str | None
    """In their place, a regular expression, where no list tells modules apart."""
    parameters: tuple[str, ...]
    """PEFT's ``target_parameters``: stacked experts."""
    trained: tuple[str, ...]
    """Parts of the model itself that are trained."""
    trainable_params: int | None
    """At rank 8 where there is one."""
    proof: Proof | None
    """``step``: built, and a training step taken; ``build``: built only."""
    left_out: Mapping[str, str]
    """Modules that were meant to be adapted, and why they are not."""


class TargetOptionBody(_Part):
    """What one choice of targets matches, and what LoRA would train there."""

    modules: tuple[str, ...]
    pattern: str | None
    parameters: tuple[str, ...]
    trained: tuple[str, ...]
    names: tuple[str, ...]
    """Modules, by their whole names."""
    adapters: int
    trainable_params: Mapping[str, int]
    """By rank."""
    warnings: tuple[str, ...]


class InspectionDocument(_Document):
    """A model's structure, and which methods it takes, found by trying each."""

    task: TaskProfile | None
    """Null for the module of a factory: only data tell."""
    model: dict[str, Any]
    stored_bytes: Mapping[str, int]
    bytes_by_dtype: Mapping[str, int]
    expert_parameters: int
    tried_with: str | None
    """Where the inputs of the tries are from; null where none were found, and models were only built."""
    methods: Mapping[str, MethodVerdict]
    targets: Mapping[str, TargetOptionBody]
    groups: tuple[dict[str, Any], ...]
    trainable: tuple[dict[str, Any], ...]


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


class CheckFinding(_Document):
    """One thing that was found in a trainer's file."""

    id: str
    severity: Literal["error", "warning", "hint"]
    message: str
    """A sentence, without its full stop."""
    next_step: str
    key: str | None
    """That it is about; null is the whole file."""
    line: int | None
    """Where the key stands, from 1 on."""
    versions: str | None
    """What it was seen with; null where it follows from the file itself."""


class CheckDocument(_Document):
    """What is wrong with a trainer's file, whether it fits, and what would do better."""

    file: str
    format: str
    quick: bool
    """Only the file was looked at: nothing is known of its memory."""
    fits: Literal["yes", "no", "too-close", "unknown"]
    why_unknown: str | None
    findings: tuple[CheckFinding, ...]
    """The worst first."""
    counts: Mapping[str, int]
    """Severity → findings."""
    settings: Mapping[str, Any]
    """What the file says, in trainer-neutral words, with the trainer's own defaults."""
    defaults: tuple[str, ...]
    """Of these, the settings that the file does not name."""
    not_looked_at: tuple[str, ...]
    """Keys that the trainer knows and rankwise has nothing to say of."""
    estimate: EstimateDocument | None
