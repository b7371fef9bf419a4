"""The candidate that somebody asks about in a few words, checked against the model; not what it needs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError
from ...probes.profiles import ModelProfile, TaskKind
from ..adapters import AdapterFactory
from ..domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from ..methods import learning_rate
from ..rules import preferred_attention
from ..selection import ALL_LINEAR, select
from ..targets import Targets, adapted_modules

PRECISIONS = ("bf16", "fp16", "fp32", "amp-bf16", "amp-fp16")
"""Weights in 16 bits (what is trained stays float32), all in 32 bits, or float32 weights under autocast."""

LOSSES = ("plain", "chunked", "liger")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")
OFFLOADS = ("none", "optimizer", "all")
ZERO_STAGES = (0, 1, 2, 3)

TARGET_SETS = ("minimal", "balanced", "full")
MOST_ROWS = 65_536
USUAL_BLOCKS = 2
USUAL_LENGTH = 1024
"""Tokens a row, where nobody says."""
LONGEST_ROW = 16_777_216
MOST_GPUS = 65_536
HIGHEST_RANK = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an estimate is asked for. None where the model, or good practice, decides."""

    method: Method = Method.LORA
    rank: int | None = None
    alpha: float | None = None
    targets: str = "balanced"
    """A target set (``minimal``, ``balanced``, ``full``), ``all-linear`` as PEFT has it, names of modules,
    separated by commas, or ``re:`` with a regular expression for the whole name."""
    use_rslora: bool = False
    use_dora: bool = False
    quantization: Quantization = Quantization.NONE
    double_quantization: bool = False
    precision: str = "bf16"
    gradient_checkpointing: bool = True
    attention: str | None = None
    loss: str = "plain"
    optimizer: str = "adamw_torch"
    micro_batch: int = 1
    accumulation: int = 1
    length: int | None = None
    """None: :data:`USUAL_LENGTH`, or all that the model reads."""
    padded: bool = False
    packed: bool = False
    zero_stage: int = 0
    fsdp: bool = False
    offload: str = "none"
    gpus: int = 1


def candidate_from(settings: Settings, model: ModelProfile, task: TaskKind) -> Candidate:
    """The candidate that trainers would be given.

    Raises:
        InputError: a value is out of range, or the model has no such modules.
    """
    for _, problem in setting_problems(settings):
        raise problem
    if task.reads_images and (settings.padded or settings.packed):
        raise InputError(
            "images are neither padded nor packed", next_step="leave the padding or the packing out"
        )
    length = (
        min(USUAL_LENGTH, model.max_positions or USUAL_LENGTH) if settings.length is None else settings.length
    )
    if not task.reads_images and model.max_positions is not None and length > model.max_positions:
        raise InputError(
            f"{model.source} reads {model.max_positions:,} tokens at most, not {length:,}",
            next_step=f"ask for {model.max_positions}; stretched positions belong into config.json",
        )
    adapter = _adapter(settings, Targets(model, task), model)
    return Candidate(
        adapter=adapter,
        level=_level(settings, model),
        recipe=Recipe(
            max_length=None if task.reads_arrays else length,
            effective_batch=settings.micro_batch * settings.accumulation * settings.gpus,
            packing=settings.packed,
        ),
        micro_batch=settings.micro_batch,
        learning_rate=learning_rate(settings.method, model.hidden_size),
    )


def setting_problems(settings: Settings) -> Iterator[tuple[str, InputError]]:
    """Everything that is wrong whatever the model is, each with the field of the settings."""
    yield from _out_of_range(settings)
    yield from _unknown_words(settings)
    yield from _contradictions(settings)


def _out_of_range(settings: Settings) -> Iterator[tuple[str, InputError]]:
    for field, name, most in (
        ("micro_batch", "batch size", MOST_ROWS),
        ("accumulation", "gradient accumulation", MOST_ROWS),
        ("length", "sequence length", LONGEST_ROW),
        ("gpus", "number of GPUs", MOST_GPUS),
        ("rank", "rank", HIGHEST_RANK),
    ):
        value = getattr(settings, field)
        if value is not None and not 1 <= value <= most:
            message = f"{name} {value} is not between 1 and {most}"
            yield field, InputError(message, next_step="give a usual value")
    if settings.alpha is not None and not 0 < settings.alpha < math.inf:
        yield "alpha", InputError(f"alpha {settings.alpha} is not above 0", next_step="take twice the rank")


def _unknown_words(settings: Settings) -> Iterator[tuple[str, InputError]]:
    for field, name, known in (
        ("precision", "precision", PRECISIONS),
        ("loss", "loss", LOSSES),
        ("optimizer", "optimizer", OPTIMIZERS),
        ("offload", "offload", OFFLOADS),
        ("zero_stage", "ZeRO stage", ZERO_STAGES),
    ):
        value = getattr(settings, field)
        if value not in known:
            yield (
                field,
                InputError(
                    f"{name} {value!r:.80} is unknown", next_step=f"use one of {', '.join(map(str, known))}"
                ),
            )


def _contradictions(settings: Settings) -> Iterator[tuple[str, InputError]]:
    method, is_full = settings.method, settings.method is Method.FULL
    in_four_bits = settings.quantization in (Quantization.NF4, Quantization.FP4)
    found: tuple[tuple[bool, str, str, str], ...] = (
        (
            is_full and settings.quantization is not Quantization.NONE,
            "quantization",
            f"full fine-tuning cannot train {settings.quantization} weights",
            "take an adapter, such as the method lora, or leave the quantization out",
        ),
        (
            method is Method.BITFIT and settings.quantization is not Quantization.NONE,
            "quantization",
            f"biases of {settings.quantization} layers cannot be trained",
            "leave the quantization out, or take another method",
        ),
        (
            not method.has_adapter and settings.rank is not None,
            "rank",
            f"{'full fine-tuning' if is_full else f'the method {method}'} has no rank",
            "leave it out, or take an adapter, such as the method lora",
        ),
        (
            settings.use_dora and method is not Method.LORA,
            "use_dora",
            f"DoRA is a kind of LoRA, not of {method}",
            "take the method lora",
        ),
        (
            settings.use_rslora and method is not Method.LORA,
            "use_rslora",
            f"rsLoRA is a kind of LoRA, not of {method}",
            "take the method lora",
        ),
        (
            settings.double_quantization and not in_four_bits,
            "double_quantization",
            "only the scales of 4-bit blocks can be quantized too",
            "take the quantization nf4 or fp4, or leave it out",
        ),
        (
            settings.padded and settings.packed,
            "packed",
            "rows are padded or packed, not both",
            "choose one of them",
        ),
        (
            settings.attention == "flash_attention_2" and settings.precision == "fp32",
            "attention",
            "FlashAttention-2 computes in half precision only",
            "use the precision bf16",
        ),
        (
            bool(settings.zero_stage) and settings.fsdp,
            "fsdp",
            "ZeRO and FSDP exclude each other",
            "choose one of them",
        ),
        (
            settings.offload != "none" and not settings.zero_stage and not settings.fsdp,
            "offload",
            "only ZeRO and FSDP move parts of a training to the host",
            "choose a ZeRO stage, or leave the offload out",
        ),
        (
            settings.offload == "optimizer" and settings.fsdp,
            "offload",
            "FSDP moves all to the host or nothing",
            "use the offload all",
        ),
        (
            settings.offload == "all" and settings.zero_stage in (1, 2),
            "offload",
            f"ZeRO stage {settings.zero_stage} keeps parameters on every GPU",
            "use stage 3, or the offload optimizer",
        ),
    )
    for is_wrong, field, message, next_step in found:
        if is_wrong:
            yield field, InputError(message, next_step=next_step)


def _level(settings: Settings, model: ModelProfile) -> Level:
    dtypes = {
        "bf16": ("bfloat16", "bfloat16"),
        "fp16": ("float16", "float16"),
        "fp32": ("float32", "float32"),
        "amp-bf16": ("float32", "bfloat16"),
        "amp-fp16": ("float32", "float16"),
    }
    weight, compute = dtypes[settings.precision]
    if settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise InputError(
            f"{model.architecture} has no gradient checkpointing", next_step="add --no-gradient-checkpointing"
        )
    if settings.attention not in (None, "flash_attention_2", *model.attention_kernels):
        raise InputError(
            f"{model.architecture} has no attention {settings.attention!r}",
            next_step=f"use one of {', '.join(model.attention_kernels)}",
        )
    return Level(
        weight_dtype=weight,
        compute_dtype=compute,
        adapter_dtype=weight if settings.method is Method.FULL else "float32",
        quantization=settings.quantization,
        double_quantization=settings.double_quantization,
        gradient_checkpointing=settings.gradient_checkpointing,
        attention=settings.attention or preferred_attention(model),
        loss=settings.loss,
        optimizer=settings.optimizer,
        zero_stage=settings.zero_stage,
        offload=settings.offload,
        processes=settings.gpus,
        fsdp=2 if settings.fsdp else 0,  # what transformers takes since version 5
    )


def _adapter(settings: Settings, targets: Targets, model: ModelProfile) -> Adapter:
    if settings.method is Method.FULL:
        return Adapter(method=Method.FULL)
    factory = AdapterFactory(targets, dropout=0.05)
    if settings.method.unfreezes:
        return _without_adapter(settings.method, factory, model)
    is_set = settings.targets in TARGET_SETS
    name = settings.targets if is_set else "full"
    made = _of_method(settings, factory, name)
    if made is None:
        raise InputError(
            f"{model.architecture} has no layer that {settings.method} could adapt",
            next_step="use --method full",
        )
    if is_set:
        return made
    return _with_named_targets(made, settings.targets, model)


def _without_adapter(method: Method, factory: AdapterFactory, model: ModelProfile) -> Adapter:
    """What is trained of a model whose rest is frozen: of its blocks the last two, or the last of two."""
    if method is Method.LAST_BLOCKS:
        made = factory.last_blocks(USUAL_BLOCKS) or factory.last_blocks(1)
    else:
        made = factory.partial(method)
    if made is None:
        raise InputError(
            f"{model.architecture} has no weights of its own that {method} could train",
            next_step="use --method lora or full",
        )
    return made


def _of_method(settings: Settings, factory: AdapterFactory, target_set: str) -> Adapter | None:
    changes: dict[str, Any] = {} if settings.alpha is None else {"alpha": settings.alpha}
    match settings.method:
        case Method.LORA:
            made = factory.lora(
                settings.rank or 16,
                target_set,
                use_rslora=settings.use_rslora,
                use_dora=settings.use_dora,
            )
        case Method.ADALORA:
            made = factory.adalora(settings.rank or 8, target_set)
        case Method.IA3:
            made = factory.ia3("own" if target_set == "balanced" else target_set)
        case method:
            made = factory.ranked(method, settings.rank or 16, target_set)
    return made and replace(made, **changes)


def _with_named_targets(adapter: Adapter, names: str, model: ModelProfile) -> Adapter:
    """The adapter on modules that are named by their ends or by a pattern, as ``target_modules`` does."""
    if names != ALL_LINEAR:  # which PEFT extends to experts that were linear layers once; nobody names them
        adapter = replace(adapter, target_parameters=(), rank_pattern=(), alpha_pattern=())
    if names.startswith("re:") or names == ALL_LINEAR:
        where = select(names, model).where
        return replace(
            adapter,
            targets=where.modules,
            target_pattern=where.pattern,
            feedforward=tuple(end for end in adapter.feedforward if end in where.modules),
            target_set=ALL_LINEAR if names == ALL_LINEAR else "custom",
        )
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    ends = {module.name.rpartition(".")[2] for module in model.modules if module.kind != "embedding"}
    for name in wanted:
        if not any(f".{module.name}".endswith(f".{name}") for module in model.modules):
            near = difflib.get_close_matches(name, ends, 3) or sorted(ends)
            raise InputError(
                f"{model.architecture} has no module {name!r}",
                next_step=f"use minimal, balanced, full, or names such as {', '.join(near)}",
            )
    chosen = replace(
        adapter,
        targets=wanted,
        feedforward=tuple(end for end in adapter.feedforward if end in wanted),
        target_set="custom",
    )
    if not adapted_modules(chosen, model):
        raise InputError(f"nothing of {names!r} can be adapted", next_step="name linear layers")
    return chosen
