"""What a training would need and how fast it would be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...optimizer.domain import (
    Candidate,
)
from ...probes.profiles import TaskKind
from .parts import Document, Part
from .studies import ModelSummary


class Between(Part):
    """The middle of what is expected, and the ends that hold it nine times in ten."""

    low: float
    mid: float
    high: float


class GpuChoice(Part):
    """A GPU of the catalogue, and how a candidate would do on it."""

    gpu: str
    capacity_bytes: int
    fits: Literal["yes", "no", "too-close"] | None
    device_bytes: int
    device_bytes_low: int
    device_bytes_high: int
    max_micro_batch: int | None
    """Null where it was not looked for."""
    tokens_per_second: Between | None
    hours: Between | None


class EstimateDocument(Document):
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
    """Rows that surely fit; null without a limit, where not even one does, and where nobody asked."""
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
    every_gpu: tuple[GpuChoice, ...]
    """All GPUs that can compute so, the smallest first; empty unless that was asked."""
    notes: tuple[str, ...]
    """What else there is to know, in sentences."""
    seconds_spent: float


class ReadinessDocument(Document):
    """Whether a question would be answered at once."""

    ready: bool
    """Else libraries are being imported, which takes some seconds."""
