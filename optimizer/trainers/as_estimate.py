"""A trainer's settings in the words that estimates are asked in. Knows nothing of models."""

from __future__ import annotations

from typing import Any

from ...probes.profiles import TaskKind
from ..domain import Method
from ..estimates.settings import LOSSES, MOST_ROWS
from .reading import OPTIMIZERS, Reading

KERNELS = ("sdpa", "eager", "flash_attention_2")
"""That estimates know; of others they take what the model prefers."""

_TASKS = {"SEQ_CLS": TaskKind.TEXT_CLASSIFICATION, "CAUSAL_LM": TaskKind.CAUSAL_LM}


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
    return f"re:{told}"


def as_estimate(reading: Reading) -> dict[str, Any]:
    """The options of an estimate by their names; what the file leaves open is left out."""
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
    return {**options, **{name: value for name, value in named.items() if value is not None}}


def _kernel(reading: Reading) -> str | None:
    told = reading.get("attention")
    return told if told in KERNELS and "attention" in reading.said else None


def _rows(value: int | None) -> int | None:
    return None if value is None else min(value, MOST_ROWS)


def _task(reading: Reading) -> str | None:
    kind = _TASKS.get(str(reading.keys.get("task_type")))
    return None if kind is None else kind.value
