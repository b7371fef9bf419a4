"""The facts that probes collect, as frozen types without torch.

Bytes, seconds and UTC throughout. Unknown is ``None``, never 0. Knows nothing of where a fact came
from or of what it is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TaskKind(StrEnum):
    """What the model is to learn from the rows."""

    TEXT_CLASSIFICATION = "text-classification"
    REGRESSION = "regression"
    """A number from a text."""
    CAUSAL_LM = "causal-lm"
    """The texts themselves."""
    PROMPT_COMPLETION = "prompt-completion"
    """A decoder continues a prompt."""
    CHAT = "chat"
    """A decoder takes the assistant's part in conversations."""
    SEQ2SEQ = "seq2seq"
    """An encoder-decoder writes one text from another."""
    IMAGE_CLASSIFICATION = "image-classification"
    """A class from an image."""
    FORECASTING = "forecasting"
    """The next values of a series from those before them."""
    ARRAY_CLASSIFICATION = "array-classification"
    """A class from arrays of any shape."""
    ARRAY_REGRESSION = "array-regression"
    """Numbers from arrays: one, several, or a map of them."""
    SELF_SUPERVISED = "self-supervised"
    """Arrays without a target: the module returns a loss of its own."""

    @property
    def reads_images(self) -> bool:
        """From pixels of image files."""
        return self is TaskKind.IMAGE_CLASSIFICATION

    @property
    def reads_arrays(self) -> bool:
        """From numbers, images among them; all else is from text."""
        return self in (
            TaskKind.IMAGE_CLASSIFICATION,
            TaskKind.FORECASTING,
            TaskKind.ARRAY_CLASSIFICATION,
            TaskKind.ARRAY_REGRESSION,
            TaskKind.SELF_SUPERVISED,
        )

    @property
    def is_causal(self) -> bool:
        """Learnt by a decoder that predicts the next token."""
        return self in (TaskKind.CAUSAL_LM, TaskKind.PROMPT_COMPLETION, TaskKind.CHAT)

    @property
    def has_new_head(self) -> bool:
        """A head that turns a text or an image into scores is put on the model, trained from scratch."""
        return self in (TaskKind.TEXT_CLASSIFICATION, TaskKind.REGRESSION, TaskKind.IMAGE_CLASSIFICATION)


TEXT_TASKS = tuple(kind for kind in TaskKind if not kind.reads_arrays)
ARRAY_TASKS = tuple(kind for kind in TaskKind if kind.reads_arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a device."""

    pid: int
    used_bytes: int | None = None


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
    pci_bus_id: str | None = None
    is_mig: bool = False
    """An instance of a device that is split by MIG."""
    utilisation_percent: int | None = None
    """Share of the last sample period (up to a second) in which some kernel ran."""
    processes: tuple[GpuProcess, ...] | None = None
    """None where this user may not list them."""
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    """Since the driver was loaded."""
    sm_clock_hz: int | None = None
    max_sm_clock_hz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why clocks are held down now (``thermal``, ``power``, …); idling is none. None if unknown."""
    ecc_uncorrected_errors: int | None = None
    """Since the last reboot; None where the device has no ECC, or it is off."""
    health_problems: tuple[str, ...] = ()
    """Sentences on what makes the device unfit for measurements (retired pages pending, a lost device, …)."""

    @property
    def supports_bf16(self) -> bool | None:
        """Tensor cores take bfloat16 from compute capability 8.0 (Ampere); None if that is unknown."""
        return None if self.compute_capability is None else self.compute_capability >= (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """The machine that the trials run on."""

    cpu_model: str | None
    physical_cores: int | None
    """Of the machine; None where the kernel does not list them."""
    logical_cores: int
    """That this process may run on: fewer than the machine's in a container or a batch job."""
    ram_total_bytes: int
    ram_available_bytes: int
    disk_free_bytes: int
    platform: str
    python_version: str
    native_bf16: bool | None
    """The CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX-BF16)."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Installed versions of the packages that can change memory, speed or results."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that change how libraries compute: threads, how they wait, kernels."""

    @property
    def usable_cores(self) -> int:
        """How many threads can compute at once without waiting for a processor that another of them has."""
        return min(self.physical_cores or self.logical_cores, self.logical_cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """Everything that a study may run on."""

    host: HostProfile
    gpus: tuple[GpuProfile, ...] = ()
    gpu_note: str | None = None
    """Why ``gpus`` is empty, in a sentence (no driver, driver too old, …)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """Python code that makes a model."""

    name: str
    """``package.module:factory``."""
    folder: str
    """Where its package is looked for first."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments, plain JSON data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleProfile:
    """One module that owns a weight matrix."""

    name: str
    kind: str
    """``linear``, ``conv1d`` (GPT-2's transposed linear), ``convolution``, ``attention``
    (``nn.MultiheadAttention``, whose packed ``in_proj_weight`` belongs to no module of its own),
    ``attention-part`` (its output projection, whose weight it reads without calling it),
    ``embedding``, ``experts`` (a parameter that stacks the matrices of all experts of a layer; ``name`` is
    the parameter's), …"""
    role: str
    """``query``, ``key``, ``value``, ``qkv`` (those three fused), ``attention_output``, ``mlp_in``,
    ``mlp_gate``, ``mlp_out``, ``router``, ``head`` or ``other``."""
    in_features: int
    out_features: int
    parameters: int
    layer: int | None = None
    matrices: int = 1
    """How many matrices of in × out features it stacks: the experts of a layer."""
    taps: int = 1
    """Of convolutions: places of the kernel, each with a matrix of in × out channels …"""
    groups: int = 1
    """… in so many blocks along its diagonal."""
    is_plain: bool = True
    """Not of a class of the model's own: transformers then replaces a linear layer by a quantized one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorProfile:
    """One parameter of a model; one that several modules share has the name that comes first."""

    name: str
    kind: str
    """``norm`` (weight or bias of a norm), ``bias`` (of any other module), ``matrix`` or ``vector``."""
    parameters: int
    block: str | None = None
    """Name of the numbered block of the body that it lies in, the outermost if there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model's structure, from its configuration and the headers of its weight files."""

    source: str
    """What the user wrote: a folder, a hub id or a factory."""
    path: str
    """The local folder that it resolved to; of a factory, where its package is looked for."""
    revision: str | None
    """Commit on the hub, None for a local folder."""
    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    """Size of the stored tensors in the weight files."""
    structure_sha256: str
    """Over names, shapes and kinds of all parameters: equal for models of equal memory and speed."""
    weights_sha256: str | None = None
    """Over samples of the weight files: different for models that learn differently. None where unknown."""
    hidden_size: int | None
    layers: int | None
    max_positions: int | None
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width of the images that it reads; None of texts."""
    window: tuple[int, int, int] | None = None
    """Of a forecaster: rows that it sees, rows that it predicts, channels, as its configuration says."""
    supports_gradient_checkpointing: bool
    has_weights: bool = True
    """False where only a configuration is at hand: trials then run on random weights and learn nothing."""
    is_encoder_decoder: bool = False
    attention_kernels: tuple[str, ...] = ("sdpa", "eager")
    """What transformers has for this model, preferred first: ``sdpa``, ``eager``, ``flash_attention_2``, …"""
    supports_packing: bool = False
    """Its attention keeps samples apart that share a row and are told apart by their position ids."""
    runs_remote_code: bool = False
    """The model is built by Python code from its own folder, which the operator allowed."""
    modules: tuple[ModuleProfile, ...]
    new_modules: tuple[str, ...]
    """Modules with parameters that are in no weight file: a new head. They must be trained."""
    tensors: tuple[TensorProfile, ...] = ()
    """All parameters, in the order in which the model lists them."""
    factory: Factory | None = None
    """What makes it; None where transformers does."""
    forward_arguments: tuple[str, ...] = ()
    """Names of what a factory's module is called with; empty where transformers makes it."""

    @property
    def base(self) -> str:
        """What adapters and trainers call it, beside its ``revision``: the source without one."""
        return self.source.partition("@")[0] if self.revision else self.source

    @property
    def runs_own_code(self) -> bool:
        """Code that no version of a library identifies takes part."""
        return self.runs_remote_code or self.factory is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayShape:
    """One array of a row."""

    name: str
    """Under which a model's forward pass takes it."""
    shape: tuple[int, ...]
    """Without the axis of the rows; () is one number a row."""
    dtype: str = "float32"
    """``float32``, ``int64`` or ``bool``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayForm:
    """What a row is that is no text: its arrays, and how they are made of the data."""

    inputs: tuple[ArrayShape, ...]
    """Images: channels, height, width. Windows of a series: rows before, channels."""
    target: ArrayShape | None = None
    """Numbers to be predicted; None where these are a class, or the module needs none."""
    time_column: str | None = None
    """A series: the column that orders the rows; None takes them as they stand."""
    channels: tuple[str, ...] = ()
    """A series: the columns that are its values, in the model's order."""
    mean: tuple[float, ...] = ()
    """Of each channel: what is subtracted …"""
    std: tuple[float, ...] = ()
    """… and what is divided by, before the model sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """What the columns of a dataset say is to be learnt."""

    kind: TaskKind
    text_column: str
    """The column of the text, the prompt, the source text, or the conversation's messages; "" of arrays."""
    context_column: str | None = None
    """A second column of the input, appended to the first: Alpaca's ``input``, a pair's second sentence."""
    target_column: str | None = None
    """Prompt-completion and seq2seq: the text to be written."""
    label_column: str | None = None
    """Classification: the class; regression: the number; the array of either in an ``.npz``."""
    labels: tuple[str, ...] = ()
    """Distinct labels in sorted order; a label's position is its class index."""
    reason: str = ""
    """Why this task was chosen, in a sentence."""
    arrays: ArrayForm | None = None
    """None where rows are text."""


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
    """A dataset as it was read."""

    source: str
    path: str
    """A file, or a folder of files."""
    sha256: str
    format: str
    """``csv``, ``jsonl``, ``parquet``, ``text``, ``arrow`` (a folder that ``datasets`` saved), ``images`` or
    ``npz``."""
    size_bytes: int
    rows: int
    usable_rows: int
    """Rows left after empty texts and missing labels were set aside, of a series its windows; an estimate
    where rows were skipped."""
    every_nth_row: int = 1
    """Above 1 the data are so large that only every nth row was looked at; trials take the same rows."""
    revision: str | None = None
    """Commit on the hub, None for local data."""
    columns: tuple[str, ...]
    task: TaskProfile
    label_counts: Mapping[str, int] = field(default_factory=dict)
    duplicate_rows: int | None = None
    lengths: LengthProfile | None = None
    """None until a tokenizer has seen the rows."""
    notes: tuple[str, ...] = ()
    """What was left out and why, in sentences for the user."""
