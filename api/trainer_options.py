"""A trainer's settings as an estimate asks for them. Knows nothing of what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..optimizer.domain import Method, Quantization
from ..optimizer.estimates.settings import LOSSES, MOST_ROWS
from ..optimizer.trainers.reading import OPTIMIZERS, Reading
from ..probes.paths import resolve_path
from ..probes.profiles import TaskKind
from .estimates import EstimateOptions
from .own_lora import simple_expression
from .trainer_files import TrainerFile, load_trainer_file

KERNELS = ("sdpa", "eager", "flash_attention_2")
"""That estimates know; of others they take what the model prefers."""

_TASKS = {"SEQ_CLS": TaskKind.TEXT_CLASSIFICATION, "CAUSAL_LM": TaskKind.CAUSAL_LM}


def estimate_options(reading: Reading) -> EstimateOptions:
    """What an estimate of this training is asked with; what the file leaves open is left out.

    Raises:
        InputError: a pattern that no names should be held against.
    """
    method = reading.method or Method.LORA
    options: dict[str, Any] = {
        "method": method.value,
        "quantization": reading.quantization.value,
        "double_quantization": bool(reading.get("double_quantization")) and reading.quantization.is_4bit,
        "precision": precision_of(reading),
        "gradient_checkpointing": bool(reading.get("gradient_checkpointing", False)),
        "optimizer": optimizer_of(reading),
        "packed": bool(reading.get("packing")),
    }
    if method.has_adapter:
        options |= {"rank": reading.get("rank"), "targets": targets_of(reading)}
    if method is Method.LORA:
        options |= {"rslora": bool(reading.get("rslora")), "dora": bool(reading.get("dora"))}
        options["alpha"] = reading.get("alpha")
    named = {
        "attention": _kernel(reading),
        "loss": reading.get("loss") if reading.get("loss") in LOSSES else None,
        "batch_size": _rows(reading.get("micro_batch")),
        "gradient_accumulation": _rows(reading.get("accumulation")),
        "seq_len": reading.get("max_length"),
        "zero_stage": reading.get("zero_stage"),
        "offload": reading.get("offload"),
        "task": _task(reading),
    }
    return {**options, **{name: value for name, value in named.items() if value is not None}}  # type: ignore[typeddict-item]


def question_in(source: str, given: EstimateOptions) -> tuple[str, EstimateOptions]:
    """The model that a trainer's file names, and what is asked of it; what is given besides counts more.

    Raises:
        InputError: the file cannot be read, names no model, or a method that is not known here.
    """
    file = load_trainer_file(source)
    model = model_of(file, None)
    if model is None:
        raise InputError(f"{source} names no model", next_step="name the model, and settings as options")
    reading = file.reading
    if reading.bad:
        bad = reading.bad[0]
        raise InputError(
            f"{source}: {bad.key} is {bad.value!r:.80}, and has to be {bad.wanted}", next_step="correct it"
        )
    if reading.method is None and "method" not in given:
        raise InputError(
            f"rankwise does not know the method {reading.get('method')!r:.40} of {source}",
            next_step="name another with --method",
        )
    return model, {**estimate_options(reading), **given}


def model_of(file: TrainerFile, roots: Sequence[Path] | None) -> str | None:
    """The model as the trainer would find it, else beside the file; None where none is named."""
    told = file.reading.get("model")
    if not isinstance(told, str) or not told.strip():
        return None
    if file.folder is None or Path(told).is_absolute():
        return told
    beside = file.folder / told
    return told if Path(told).exists() or not beside.exists() else str(resolve_path(str(beside), roots))


def precision_of(reading: Reading) -> str:
    """One of the estimate's words: weights of 16 bits, or float32 ones with autocast or without."""
    weights, autocast = reading.get("weight_dtype"), reading.get("autocast")
    if weights in (None, "auto") and reading.trainer != "transformers":
        weights = autocast or "bfloat16"
    if weights in ("bfloat16", "float16"):
        return {"bfloat16": "bf16", "float16": "fp16"}[weights]
    return {"bfloat16": "amp-bf16", "float16": "amp-fp16"}.get(str(autocast), "fp32")


def optimizer_of(reading: Reading) -> str:
    """The nearest of those that are run: an AdamW, in 8 bits and paged where the name says so."""
    name = str(reading.get("optimizer", "adamw_torch"))
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if "8bit" in name:
        return "paged_adamw_8bit" if name.startswith("paged") else "adamw_8bit"
    return "adamw_torch"


def targets_of(reading: Reading) -> str:
    """Names with commas, ``all-linear``, or a pattern; all of attention where nothing is named."""
    told = reading.get("targets")
    if not told:
        return "balanced"
    if isinstance(told, list | tuple):
        return ",".join(told)
    if told == "all-linear" or told.replace("_", "").isalnum():
        return str(told)
    return f"re:{simple_expression(told)}"


def _kernel(reading: Reading) -> str | None:
    told = reading.get("attention")
    return told if told in KERNELS and "attention" in reading.said else None


def _rows(value: int | None) -> int | None:
    return None if value is None else min(value, MOST_ROWS)


def _task(reading: Reading) -> str | None:
    kind = _TASKS.get(str(reading.keys.get("task_type")))
    return None if kind is None else kind.value


def better_split(micro_batch: int, accumulation: int, most: int) -> tuple[int, int] | None:
    """The largest micro-batch with which the same rows make a step; None where it is the present one."""
    rows = micro_batch * accumulation
    sizes = (size for size in range(min(most, rows), 0, -1) if rows % size == 0)
    best = next(sizes, micro_batch)
    return None if best == micro_batch else (best, math.ceil(rows / best))


def leaner(reading: Reading, options: EstimateOptions) -> list[tuple[str, EstimateOptions]]:
    """What may fit where this does not, the mildest first, each with what is changed in words."""
    found: list[tuple[str, EstimateOptions]] = []
    checkpointed: EstimateOptions = {**options, "gradient_checkpointing": True}
    if not options.get("gradient_checkpointing"):
        found.append(("gradient checkpointing", checkpointed))
    if (reading.method or Method.LORA).has_adapter and reading.quantization is Quantization.NONE:
        quantized: EstimateOptions = {**checkpointed, "quantization": Quantization.NF4.value}
        also = "" if options.get("gradient_checkpointing") else " and gradient checkpointing"
        found.append((f"nf4 weights (load_in_4bit){also}", quantized))
    return found
