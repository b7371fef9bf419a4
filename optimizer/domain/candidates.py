"""What can be run: an adapter, the level around it, the recipe, and what is swept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..codec import CAME_LATER, FOR_PEOPLE, canonical_json, digest, digest_of, identity
from .words import LossMask, Method, Quantization

CANDIDATE_VERSION = 1
"""Version of the canonical form that candidate ids are computed over."""


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
        rest = {"v": CANDIDATE_VERSION, "micro_batch": self.micro_batch, "learning_rate": self.learning_rate}
        texts = {name: _text(part) for name, part in _parts(self).items()}
        return digest_of({**texts, **{name: canonical_json(value) for name, value in rest.items()}})

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


Part = Adapter | Level | Recipe


def _parts(candidate: Candidate) -> dict[str, Part]:
    return {"adapter": candidate.adapter, "level": candidate.level, "recipe": candidate.recipe}


@lru_cache(maxsize=2**14)
def _shape_key(candidate: Candidate) -> str:
    """Kept: a study's trials are asked for it again and again."""
    forms = {name: _shape_form(part) for name, part in _parts(candidate).items()}
    return digest({"v": CANDIDATE_VERSION, "micro_batch": candidate.micro_batch, **forms})


@lru_cache(maxsize=2**12)
def _text(part: Part) -> str:
    """Kept too, and most of the work: thousands of candidates are made of few parts."""
    return canonical_json(identity(part))


@lru_cache(maxsize=2**12)
def _shape_form(part: Part) -> Mapping[str, Any]:
    form = identity(part)
    if isinstance(part, Adapter):
        form |= {"alpha": None, "alpha_pattern": [], "dropout": part.dropout > 0}
    if isinstance(part, Recipe):
        form["weight_decay"] = part.weight_decay > 0
        for name in ("epochs", "schedule", "warmup_ratio"):
            del form[name]
    return form
