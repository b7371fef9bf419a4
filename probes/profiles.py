"""The facts that probes collect, as frozen types without torch.

Bytes, seconds and UTC throughout. Unknown is ``None``, never 0. Knows nothing of where a fact came
from or of what it is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class TaskKind(StrEnum):
    """What the model is to learn from the rows."""

    TEXT_CLASSIFICATION = "text-classification"
    CAUSAL_LM = "causal-lm"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """One CUDA device (or MIG instance) as NVML reports it."""

    uuid: str
    index: int
    name: str
    total_bytes: int
    used_bytes: int | None = None
    free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    driver_version: str | None = None
    utilisation_percent: int | None = None

    @property
    def supports_bf16(self) -> bool | None:
        """Tensor cores take bfloat16 from compute capability 8.0 (Ampere); None if that is unknown."""
        return None if self.compute_capability is None else self.compute_capability >= (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """The machine that the trials run on."""

    cpu_model: str | None
    physical_cores: int | None
    logical_cores: int
    ram_total_bytes: int
    ram_available_bytes: int
    disk_free_bytes: int
    platform: str
    python_version: str
    native_bf16: bool | None
    """The CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX-BF16)."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Installed versions of the packages that can change memory, speed or results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """Everything that a study may run on."""

    host: HostProfile
    gpus: tuple[GpuProfile, ...] = ()
    gpu_note: str | None = None
    """Why ``gpus`` is empty, in a sentence (no driver, driver too old, …)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleProfile:
    """One module that owns a weight matrix, as found on the meta device."""

    name: str
    kind: str
    """``linear``, ``conv1d`` (GPT-2's transposed linear), ``embedding``, …"""
    role: str
    """``query``, ``key``, ``value``, ``qkv`` (those three fused), ``attention_output``, ``mlp_in``,
    ``mlp_gate``, ``mlp_out``, ``head`` or ``other``."""
    in_features: int
    out_features: int
    parameters: int
    layer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model's structure, from its configuration and the headers of its weight files."""

    source: str
    """What the user wrote: a folder or a hub id."""
    path: str
    """The local folder that it resolved to."""
    revision: str | None
    """Commit on the hub, None for a local folder."""
    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    """Size of the stored tensors in the weight files."""
    structure_sha256: str
    """Over names, shapes and kinds of all parameters: equal for models of equal memory and speed."""
    hidden_size: int | None
    layers: int | None
    max_positions: int | None
    supports_gradient_checkpointing: bool
    runs_remote_code: bool = False
    """The model is built by Python code from its own folder, which the operator allowed."""
    modules: tuple[ModuleProfile, ...]
    new_modules: tuple[str, ...]
    """Modules with parameters that are in no weight file: a new head. They must be trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """What the columns of a dataset say is to be learnt."""

    kind: TaskKind
    text_column: str
    label_column: str | None = None
    labels: tuple[str, ...] = ()
    """Distinct labels in sorted order; a label's position is its class index."""
    reason: str = ""
    """Why this task was chosen, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthProfile:
    """Token counts per row, special tokens included, before any truncation."""

    p50: int
    p90: int
    p99: int
    max: int
    mean: float
    rows_measured: int
    estimated: bool
    """True where percentiles come from a sample and the maximum from the longest rows by characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetProfile:
    """A dataset file as it was read."""

    source: str
    path: str
    sha256: str
    format: str
    size_bytes: int
    rows: int
    usable_rows: int
    """Rows left after empty texts and missing labels were set aside."""
    columns: tuple[str, ...]
    task: TaskProfile
    label_counts: Mapping[str, int] = field(default_factory=dict)
    duplicate_rows: int | None = None
    lengths: LengthProfile | None = None
    """None until a tokenizer has seen the rows."""
