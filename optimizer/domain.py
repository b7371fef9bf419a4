"""The vocabulary of rankwise as small frozen types; each candidate knows its own id.

Edges (API, command line, store, job reports) turn JSON into these types with :func:`~.codec.from_json`, which
validates; code behind the edges trusts them. Knows nothing about processes, databases or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from ..probes.asked import Asked
from ..probes.profiles import DatasetProfile, HardwareProfile, ModelProfile
from .codec import CAME_LATER, FOR_PEOPLE, digest, identity
from .estimates.intervals import Fits

SCHEMA_VERSION = 1
"""Version of every file and message that carries ``schema_version``."""

CANDIDATE_VERSION = 1
"""Version of the canonical form that candidate ids are computed over."""


class Method(StrEnum):
    """How weights are adapted."""

    LORA = "lora"
    ADALORA = "adalora"
    IA3 = "ia3"
    OFT = "oft"
    MISS = "miss"
    HEAD = "head"
    """Without an adapter, like all that follow: only the head is trained."""
    LAST_BLOCKS = "last-blocks"
    """The last blocks and a new head."""
    BITFIT = "bitfit"
    """All biases and a new head."""
    NORMS = "norms"
    """All norms and a new head."""
    FULL = "full"
    """Every weight."""

    @property
    def unfreezes(self) -> bool:
        """Some of the model's own weights are trained, and all others are frozen."""
        return self in (Method.HEAD, Method.LAST_BLOCKS, Method.BITFIT, Method.NORMS)

    @property
    def has_adapter(self) -> bool:
        """PEFT puts something beside the model's weights."""
        return self is not Method.FULL and not self.unfreezes


class Quantization(StrEnum):
    """How bitsandbytes stores frozen linear layers."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"
    FP4 = "fp4"

    @property
    def is_4bit(self) -> bool:
        """Blocks of 4-bit numbers with a scale each."""
        return self in (Quantization.NF4, Quantization.FP4)


class Preset(StrEnum):
    """Named LoRA configurations; what they are is in :mod:`.presets`."""

    EFFICIENT = "efficient"
    BALANCED = "balanced"
    EXPRESSIVE = "expressive"
    QLORA_MEMORY = "qlora_memory"
    QLORA_QUALITY = "qlora_quality"
    AUTO = "auto"
    """One of them, by the task and the number of rows."""


class LossMask(StrEnum):
    """Which tokens a language model learns."""

    ALL = "all"
    COMPLETION = "completion"
    """What follows the prompt."""
    ASSISTANT = "assistant"
    """What the assistant says in a conversation."""


class Complexity(StrEnum):
    """How hard the user takes the task to be; asked by the tiers of the first design only."""

    SIMPLE = "simple"
    MEDIUM = "medium"
    COMPLEX = "complex"
    VERY_COMPLEX = "very complex"


class Rung(StrEnum):
    """How far a trial takes its candidate."""

    PROBE = "probe"
    """Speed and memory are measured; the training loss says nothing yet."""
    TRAIN = "train"
    """Trained on a token budget; held-out loss is measured."""


class StudyState(StrEnum):
    """queued → running → succeeded | failed | cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """No transition leaves this state."""
        return self in (StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED)


class TrialState(StrEnum):
    """queued → running → finished; a lost attempt takes it back to queued."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class Outcome(StrEnum):
    """How a trial or one attempt at it ended."""

    OK = "ok"
    OOM = "oom"
    """The device's memory, or the study's limit on it, did not suffice."""
    HOST_OOM = "host-oom"
    DIVERGED = "diverged"
    """A loss was NaN or infinite."""
    INVALID = "invalid"
    """It ran, but not as configured: an adapter without gradient, a frozen weight that moved, …"""
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The trial's own code failed; trying again would fail again."""
    LOST = "lost"
    """The infrastructure failed: a process was killed or vanished. Tried again, up to a limit."""
    CANCELLED = "cancelled"
    DISTURBED = "disturbed"
    """Of attempts only: foreign work on the device spoilt the measurement. Tried again, up to a limit."""


class Objective(StrEnum):
    """Named sets of weights, see :data:`OBJECTIVE_WEIGHTS`."""

    BALANCED = "balanced"
    SPEED = "speed"
    QUALITY = "quality"
    MEMORY = "memory"
    COST = "cost"
    """What the whole training costs, in money where a price is known, else in time."""


class Scoring(StrEnum):
    """Which formula ranks the trials."""

    COMPARABLE = "comparable"
    """Weighted mean of parts between 0 and 1 that all compared candidates have."""
    CLASSIC = "classic"
    """The literal formula of the first design, kept for comparison with old reports."""


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
class Adapter:
    """A PEFT method with its parameters. Fields that a method does not have are None or empty."""

    method: Method
    rank: int | None = None
    """AdaLoRA: the mean rank that is left at the end (``target_r``)."""
    initial_rank: int | None = None
    """AdaLoRA only: the rank of every matrix at the start (``init_r``)."""
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Module-name suffixes, sorted, as PEFT's ``target_modules`` takes them."""
    target_pattern: str | None = None
    """In their place, a regular expression that the names of modules match in full."""
    target_parameters: tuple[str, ...] = ()
    """Suffixes of parameters that stack the matrices of experts: PEFT's ``target_parameters``."""
    feedforward: tuple[str, ...] = ()
    """IA3 only: the targets whose input, not output, is scaled."""
    trained_modules: tuple[str, ...] = ()
    """Modules trained in full beside the adapter (a new head): PEFT's ``modules_to_save``."""
    unfrozen: tuple[str, ...] = ()
    """Without an adapter: parts of the model that are trained beside ``trained_modules``, all else frozen.

    A part is what stands between dots in the names of its parameters: ``encoder.layer.5``, ``bias``.
    """
    last_blocks: int | None = None
    """``LAST_BLOCKS`` only: how many blocks ``unfrozen`` names."""
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """LoRA only: pairs of a regular expression for the end of a module's name and its rank.

    The first that matches holds, as in PEFT's ``rank_pattern``; ``rank`` is for all others.
    """
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    """The same for ``alpha``."""
    init_weights: str | None = None
    """A LoRA initialisation by PEFT's name (``pissa``, ``olora``, …); None is the default, B = 0."""
    target_set: str = field(default="custom", metadata=FOR_PEOPLE)
    """Name of the set that ``targets`` came from; for people, not part of the identity."""

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """All that is trained of the model itself, and so never quantized."""
        return (*self.trained_modules, *self.unfrozen)

    def describe(self) -> str:
        """Short and human: ``LORA r=16 α=32 minimal``, ``IA3 key,value``, ``last 2 blocks + head``."""
        head = " + head" if self.trained_modules else ""
        match self.method:
            case Method.FULL:
                return "full fine-tuning"
            case Method.HEAD:
                return "head only"
            case Method.LAST_BLOCKS:
                return ("last block" if self.last_blocks == 1 else f"last {self.last_blocks} blocks") + head
            case Method.BITFIT:
                return f"biases{head}"
            case Method.NORMS:
                return f"norms{head}"
        parts = [self.method.upper()]
        if self.rank is not None:
            start = "" if self.initial_rank is None else f"{self.initial_rank}→"
            parts.append(f"r={start}{self.rank}")
        if self.alpha is not None:
            parts.append(f"α={self.alpha:g}")
        if self.rank_pattern:
            ranks = {rank for _, rank in self.rank_pattern} | {self.rank or 0}
            parts[1:2] = [f"r={min(ranks)}…{max(ranks)}"]
        variants = {"rsLoRA": self.use_rslora, "DoRA": self.use_dora, self.init_weights: True}
        parts += [name for name, on in variants.items() if on and name]
        parts.append(self.target_set if self.target_set != "custom" else ",".join(self.targets))
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLora:
    """A LoRA as somebody writes it, to be tried as it is; checked against the model when that is known."""

    rank: int = 8
    alpha: float | None = None
    """None: twice the rank."""
    dropout: float = 0.1
    targets: tuple[str, ...] = ("balanced",)
    """The name of one target set, or modules as :mod:`.selection` takes them."""
    use_rslora: bool = False
    use_dora: bool = False
    first_rank: int | None = None
    """In the first quarter of the layers, at the same ratio of alpha to rank; None: as in the others."""
    last_rank: int | None = None
    """The same for the last quarter."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """As in :class:`Adapter`; these come before the two above."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    quantization: Quantization = Quantization.NONE
    double_quantization: bool = False
    compute_dtype: str | None = None
    """``bfloat16``, ``float16`` or ``float32``; None: what suits the hardware."""
    skip_modules: tuple[str, ...] = ()
    """As in :class:`Level`."""


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
class Level:
    """The settings around the adapter that trade memory for speed.

    Where weights, computing and adapter differ in dtype, automatic mixed precision (autocast) bridges them.
    """

    weight_dtype: str = "float32"
    """Of the weights as loaded, and of those that quantization leaves out."""
    compute_dtype: str = "float32"
    adapter_dtype: str = "float32"
    """Of everything that is trained beside frozen weights."""
    quantization: Quantization = Quantization.NONE
    double_quantization: bool = False
    """The scales of 4-bit blocks are quantized too."""
    skip_modules: tuple[str, ...] = ()
    """Ends of names of modules that are not quantized, beside what is trained."""
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    """transformers' ``attn_implementation``."""
    loss: str = "plain"
    """``plain`` as transformers has it, ``chunked`` (logits a piece at a time) or ``liger`` (its kernel)."""
    compile: bool = False
    optimizer: str = "adamw_torch"
    """transformers' name: ``adamw_torch``, ``adamw_torch_fused``, ``adamw_8bit``, ``paged_adamw_8bit``."""
    zero_stage: int = 0
    offload: str = "none"
    """``none``, ``optimizer`` (states on the host) or ``all`` (parameters too)."""
    processes: int = field(default=1, metadata=CAME_LATER)
    """That train together, one a device."""
    fsdp: int = field(default=0, metadata=CAME_LATER)
    """Version of PyTorch's FSDP that divides everything, 1 or 2; 0 where it does not."""

    @property
    def sharding(self) -> str:
        """What is divided, in people's words; empty where one process has all to itself."""
        if self.zero_stage:
            return f"ZeRO-{self.zero_stage}"
        if self.fsdp:
            return f"FSDP{self.fsdp}"
        return "DDP" if self.processes > 1 else ""

    @property
    def uses_deepspeed(self) -> bool:
        """DeepSpeed trains, with one process too."""
        return self.zero_stage > 0

    @property
    def amp(self) -> bool:
        """Automatic mixed precision is on."""
        return not self.weight_dtype == self.compute_dtype == self.adapter_dtype

    def describe(self) -> str:
        """Short and human: ``GradCP + AMP bfloat16``, ``float32``."""
        parts = ["GradCP"] if self.gradient_checkpointing else []
        if self.amp and self.weight_dtype == self.compute_dtype:
            parts.append(f"{self.weight_dtype} weights")
        else:
            parts.append(f"AMP {self.compute_dtype}" if self.amp else self.compute_dtype)
        if self.quantization is not Quantization.NONE:
            spared = f" but {','.join(self.skip_modules)}" if self.skip_modules else ""
            parts.append(f"{self.quantization}{' double' if self.double_quantization else ''}{spared}")
        usual = Level()
        parts += [
            text
            for text, differs in (
                (f"{self.attention} attention", self.attention != usual.attention),
                (f"{self.loss} loss", self.loss != usual.loss),
                (self.optimizer, self.optimizer != usual.optimizer),
                ("compiled", self.compile),
                (f"{self.sharding} on {self.processes}", bool(self.sharding)),
                (f"{self.offload} offloaded", self.offload != usual.offload),
            )
            if differs
        ]
        return " + ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How rows become batches, and how long and on what schedule they are learnt."""

    max_length: int | None
    """Tokens; None where rows are no text."""
    effective_batch: int = 16
    epochs: float = 3.0
    schedule: str = "linear"
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    packing: bool = False
    """Several short samples share one row of ``max_length`` tokens, each seeing only itself."""
    chat_template_sha256: str | None = None
    """Of the Jinja template that turned messages into text."""
    loss_mask: LossMask = LossMask.ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Everything that a trainer needs besides the model, the data and the seed."""

    adapter: Adapter
    level: Level
    recipe: Recipe
    micro_batch: int
    learning_rate: float

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON, defaults written out."""
        return digest({"v": CANDIDATE_VERSION, **identity(self)})

    @property
    def shape_key(self) -> str:
        """Equal for candidates of equal memory and speed: rates, alpha, schedule and duration are left out.

        Dropout counts only as on or off (it stores a mask or it does not), and so does weight decay.
        """
        return _shape_key(self)

    @property
    def accumulation(self) -> int:
        """Micro-batches of each process per optimizer step."""
        return -(-self.recipe.effective_batch // (self.micro_batch * self.level.processes))

    def describe(self) -> str:
        """Short and human: ``GradCP + AMP bfloat16 + LORA r=16 α=32 balanced, batch 4×4, lr 0.0002``.

        The batch is rows at a time × accumulated × processes.
        """
        counts = [self.micro_batch, self.accumulation, self.level.processes]
        while len(counts) > 1 and counts[-1] == 1:
            counts.pop()
        batch = "×".join(map(str, counts))
        return (
            f"{self.level.describe()} + {self.adapter.describe()}, batch {batch}, lr {self.learning_rate:g}"
        )


@lru_cache(maxsize=2**14)
def _shape_key(candidate: Candidate) -> str:
    """Kept: a study's trials are asked for it again and again."""
    parts = {"adapter": candidate.adapter, "level": candidate.level, "recipe": candidate.recipe}
    forms = {name: _shape_form(part) for name, part in parts.items()}
    return digest({"v": CANDIDATE_VERSION, "micro_batch": candidate.micro_batch, **forms})


@lru_cache(maxsize=2**12)
def _shape_form(part: Adapter | Level | Recipe) -> Mapping[str, Any]:
    """Kept too, and most of the work: thousands of candidates are made of few parts."""
    form = identity(part)
    if isinstance(part, Adapter):
        form |= {"alpha": None, "alpha_pattern": [], "dropout": part.dropout > 0}
    if isinstance(part, Recipe):
        form["weight_decay"] = part.weight_decay > 0
        for name in ("epochs", "schedule", "warmup_ratio"):
            del form[name]
    return form


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMeasurement:
    """What one process of several measured of itself; columns as in :class:`Measurement`."""

    rank: int
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    step_s_mean: float | None = None
    """Of the steps that were timed."""
    communication_share: float | None = None
    """Of a step's time, that in which it talked to the others or waited for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one trial measured. ``None`` is "not measured", never zero.

    Memory columns mean different things and are never mixed: ``peak_tensor_bytes`` live tensor storages
    (an untimed step), ``peak_allocated_bytes`` / ``peak_reserved_bytes`` CUDA's caching allocator,
    ``peak_device_bytes`` NVML for the trial's processes, ``peak_process_bytes`` growth of the host's
    resident set over what the process inherited. Of several processes they are those of the one that holds
    most; host memory, which they share, is the sum.
    """

    tokens_per_s: float | None = None
    """Tokens that carry content (padding not counted) per second of optimizer steps; None of arrays."""
    tokens_per_s_rel_halfwidth: float | None = None
    """Half the 95 % interval of :attr:`speed`, as a share of it."""
    samples_per_s: float | None = None
    steps_per_s: float | None = None
    step_s_mean: float | None = None
    step_s_std: float | None = None
    steps_measured: int = 0
    measured_s: float = 0.0
    """Wall time of the steps that were timed or trained: the useful part of a trial."""
    evaluation_s: float | None = None
    """Wall time of judging the held-out rows after a training; no part of ``measured_s``."""
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    trainable_params: int | None = None
    total_params: int | None = None
    trainable_sha256: str | None = None
    """Over names and shapes of what was trained; the exported script compares its own with it."""
    heldout_loss: float | None = None
    heldout_loss_se: float | None = None
    heldout_rows: int | None = None
    metric_name: str | None = None
    metric_value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All that was measured on the held-out rows beside the loss, the one above included."""
    own_metric: float | None = None
    """The number that the user's evaluation command printed."""
    own_loss: float | None = None
    """The same, lower being better."""
    trained_tokens: int | None = None
    train_losses: tuple[float | None, ...] = ()
    """Training loss of each optimizer step, None where it was NaN or infinite. Never scores."""
    disturbances: tuple[str, ...] = ()
    """What spoilt speed and memory every time that the trial was tried, in sentences."""
    ranks: tuple[RankMeasurement, ...] = ()
    """Of each process, where a trial has several."""

    @property
    def judged_loss(self) -> float | None:
        """What quality is compared by, lower being better: the user's own number, else the held-out loss."""
        return self.heldout_loss if self.own_loss is None else self.own_loss

    @property
    def speed(self) -> float | None:
        """Tokens a second, of rows that are no text samples a second."""
        return self.samples_per_s if self.tokens_per_s is None else self.tokens_per_s

    @property
    def speed_unit(self) -> str:
        """What :attr:`speed` counts."""
        return "tokens/s" if self.tokens_per_s is not None or self.samples_per_s is None else "samples/s"

    @property
    def memory_bytes(self) -> int | None:
        """The peak that a limit is held against: the device's where there is one, else the host process's."""
        for value in (self.peak_device_bytes, self.peak_reserved_bytes, self.peak_process_bytes):
            if value is not None:
                return value
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutScores:
    """What a training scored on each held-out row, in the order of the held-out file.

    Equal for all trainings of a study: so two of them can be compared row by row.
    """

    losses: tuple[float, ...]
    """Summed over the row's items."""
    items: tuple[int, ...]
    """What is scored of the row: itself, or the tokens to be predicted."""

    @property
    def loss(self) -> float:
        """The mean over all items."""
        return sum(self.losses) / sum(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a dry run told of a shape on the device that trials run on, before any of it ran there.

    Memory columns are those of :class:`Measurement`, so that each can be held against its own; None is
    "not told", as CUDA's are of a CPU. Of several processes they are those of one, and work is, too; what is
    held against a host's limit (``peak_process_bytes``, and on a CPU ``low_bytes``), speeds and
    ``step_tokens`` are of all together.
    """

    device: str
    """The catalogue's name, or the driver's."""
    fits: Fits | None = None
    """None where nothing can be said: on a CPU processes hold more than tensors, and how much varies."""
    reason: str | None = None
    """Why it cannot fit, or why nothing was told, in a sentence."""
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    rank_host_bytes: int | None = None
    """That each process keeps in the host's memory because it is offloaded; None where nothing is. On a CPU
    they are among the tensors."""
    host_bytes: int | None = None
    """The same of all processes."""
    low_bytes: int | None = None
    """Least that it takes of what the memory limit is held against."""
    high_bytes: int | None = None
    capacity_bytes: int | None = None
    """What there was then of what the memory limit is held against; None where it is unknown."""
    tokens_per_s: float | None = None
    """Where rows are no text, samples: see ``unit``."""
    tokens_per_s_low: float | None = None
    tokens_per_s_high: float | None = None
    flops: Mapping[str, int] = field(default_factory=dict)
    """Of one optimizer step with the heaviest batch, by the dtype that they are computed in."""
    moved_bytes: int = 0
    kernels: int = 0
    communication_bytes: int = 0
    """That each process sends in such a step to the others, and to the host and back where it offloads."""
    step_tokens: float = 0.0
    """Tokens with content that the work of such a step does, at the padding that these data have."""
    unit: str = "tokens"
    """What the three speeds and ``step_tokens`` count: ``tokens`` or ``samples``."""
    seconds: float = 0.0
    """That it took to tell."""


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
class TrialPlan:
    """A trial that the search wants to see run."""

    candidate: Candidate
    rung: Rung
    replicate: int = 0
    train_steps: int = 0
    """Optimizer steps of a ``TRAIN`` trial; 0 for probes."""
    goal_steps: int = 0
    """Steps that the study's finalists are trained."""
    reason: str = ""
    """Why the search asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a candidate at one rung, and where it stands."""

    id: str
    study_id: str
    number: int
    """1, 2, 3 … in the order of planning, per study."""
    plan: TrialPlan
    state: TrialState
    attempts: int = 0
    outcome: Outcome | None = None
    reason: str | None = None
    measurement: Measurement | None = None
    log_tail: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    wall_s: float | None = None
    """From launch to the last report, everything included."""
    reused_from: str | None = None
    """The trial, of any study, that measured this shape in this environment; nothing was run for this one."""
    estimate: Estimate | None = None
    """What a dry run had told of its shape."""
    heldout: HeldoutScores | None = None
    """Row by row; None of probes, and where it was not asked for."""

    @property
    def candidate(self) -> Candidate:
        """The candidate that this trial runs."""
        return self.plan.candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a study's history, numbered without gaps."""

    study_id: str
    seq: int
    kind: str
    payload: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrial:
    """A trial's place in a ranking."""

    trial_id: str
    number: int
    rank: int
    score: float
    parts: Mapping[str, float]
    """Each between 0 and 1 (``speed``, ``memory``, ``quality``); the literal terms under classic scoring."""
    on_pareto_front: bool
    tied_with_best: bool
    replicates: tuple[str, ...] = ()
    """All trials of this candidate that its figures are means of, this one included."""
    heldout_loss: float | None = None
    """Mean over the replicates."""
    is_as_good: bool = True
    """Its quality is what the objective, or the user, asks for; those of which it is not stand below."""
    finish_s: float | None = None
    """That the user's whole training would take."""


class Relation(StrEnum):
    """What a comparison of two held-out losses found."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference"
    """None was found at this budget."""
    UNKNOWN = "unknown"
    """There is nothing to judge it by, or so little (single seeds) that the interval leaves it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The recommended candidate's held-out loss against another's, on the same rows."""

    trial_id: str
    """Of the other."""
    difference: float
    """The recommended one's less the other's: negative where the recommended one learnt more."""
    low: float | None
    """The interval of the difference, wide enough to hold for all comparisons of the study together."""
    high: float | None
    relation: Relation
    """Of the recommended one to the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What would be recommended under another objective, from the same trials."""

    name: str
    """``balanced``, ``fastest``, ``smallest``, ``best quality``."""
    trial_id: str
    number: int
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What the user's whole training takes at the measured speed, evaluation and saving not counted."""

    steps: int
    seconds: float
    low_s: float
    high_s: float
    cost: float | None = None
    """Where a price is known, in its currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The chosen candidate with its evidence: a snapshot, stored once per finished study."""

    study_id: str
    trial_id: str
    candidate: Candidate
    evidence: Measurement
    score: float
    scoring: Scoring
    weights: Weights
    ranking: tuple[ScoredTrial, ...]
    """Comparable trials, best first."""
    reasons: tuple[str, ...]
    """Sentences for people: why this one, what was ruled out, what was not measured."""
    quality_measured: bool
    wall_s: float
    """Wall time from the study's first start to this recommendation, summed over its runs."""
    measured_s: float
    """Part of ``wall_s`` spent in steps that were timed or trained."""
    evaluation_s: float = 0.0
    """Part of ``wall_s`` in which trainings were judged on held-out rows; no part of ``measured_s``."""
    estimate: Estimate | None = None
    """What had been told of the candidate's memory and speed before it was measured."""
    comparisons: tuple[Comparison, ...] = ()
    """With every other candidate that was trained as long, in the order of the ranking."""
    confidence: float | None = None
    """With which the intervals of all comparisons hold together."""
    named: tuple[Named, ...] = ()
    finish: Finish | None = None
    stopped: str | None = None
    """Why the search ended, in a sentence."""

    @property
    def overhead_share(self) -> float | None:
        """Share of the wall time outside measured steps, evaluation on held-out rows among it."""
        return None if self.wall_s <= 0 else max(0.0, 1.0 - self.measured_s / self.wall_s)

    @property
    def evaluation_share(self) -> float | None:
        """Share of the wall time in which trainings were judged on held-out rows."""
        return None if self.wall_s <= 0 else self.evaluation_s / self.wall_s
