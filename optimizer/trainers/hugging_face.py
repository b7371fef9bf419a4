"""The words of transformers' Trainer and of TRL's command line, where they are more than another name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..domain import Method, Quantization
from .cells import Cannot, Effect, Keys, Unsaid
from .settings import Settings

SIXTEEN_BIT = {"bfloat16": "bf16", "float16": "fp16"}

ONLY_THE_LOSS: Mapping[str, bool] = {
    **dict.fromkeys(("rope", "rms_norm", "layer_norm", "swiglu", "geglu", "cross_entropy"), False),
    "fused_linear_cross_entropy": True,
}
"""Of what Liger can replace, the part that trials were run with."""

ALL_LOGITS = Cannot("all logits are there at once: the same numbers with more memory", Effect.OTHER_COST)

SEQUENTIAL = "sequential"

OUTPUT_EMBEDDINGS = {"lm_head", "embed_out"}
"""As transformers' language models call them."""

NO_LINEAR_LAYER = re.compile(r"norm|embed_tokens|embed_in|word_embeddings|\bw[tp]e\b|\bln_")
"""In the names of modules that are never quantized."""


def whole(alpha: float) -> int:
    """Of trainers whose alpha is a whole number."""
    if alpha != int(alpha):
        raise Cannot(f"alpha has to be a whole number, and {alpha:g} is none")
    return int(alpha)


def precision(settings: Settings) -> Keys:
    """The switches of autocast. Both are named always: trainers differ in what they take unasked."""
    flags = dict.fromkeys(SIXTEEN_BIT.values(), False)
    if settings["autocast"] is not None:
        flags[SIXTEEN_BIT[settings["autocast"]]] = True
    return flags


def read_precision(keys: Keys) -> str | None:
    """The dtype of autocast; None where it is off."""
    return next((dtype for dtype, flag in SIXTEEN_BIT.items() if keys.get(flag) in (True, "auto")), None)


def read_trl_precision(keys: Keys) -> str | None:
    """bfloat16 unless it is switched off, or float16 on (TRL's own default)."""
    return read_precision({"bf16": not keys.get("fp16"), **{k: v for k, v in keys.items() if v is not None}})


def checkpointing(settings: Settings) -> Keys:
    """Under the Trainer's present name; TRL and older versions have another."""
    if not settings["gradient_checkpointing"]:
        return {"activation_checkpointing": False}
    return {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}


def old_checkpointing(settings: Settings) -> Keys:
    """Under the name that every version of the last years knows."""
    if not settings["gradient_checkpointing"]:
        return {"gradient_checkpointing": False}
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def read_checkpointing(keys: Keys) -> bool:
    """Under either name; off unless it is asked for."""
    return bool(keys.get("activation_checkpointing") or keys.get("gradient_checkpointing"))


def read_trl_checkpointing(keys: Keys) -> bool:
    """On unless it is switched off."""
    if {"activation_checkpointing", "gradient_checkpointing"}.isdisjoint(keys):
        return True
    return read_checkpointing(keys)


def loss(settings: Settings) -> Keys:
    """Liger's loss can be switched on by itself."""
    if settings["loss"] == "chunked":
        raise ALL_LOGITS
    return (
        {"use_liger_kernel": True, "liger_kernel_config": dict(ONLY_THE_LOSS)}
        if settings["loss"] == "liger"
        else {}
    )


def read_loss(keys: Keys) -> str:
    """Of Liger's parts only the loss matters here."""
    return "liger" if keys.get("use_liger_kernel") else "plain"


def whole_batches(settings: Settings) -> Keys:
    """Trainers take as many full micro-batches a step as they are told; a trial's last one may be smaller."""
    rows = settings["micro_batch"] * settings["accumulation"]
    if rows != settings["effective_batch"]:
        raise Cannot(f"{settings['accumulation']} micro-batches of {settings['micro_batch']} are {rows} rows")
    return {}


def total_steps(settings: Settings) -> Keys:
    """By their number: trainers that count epochs take a step for each epoch's incomplete batch too."""
    return {"max_steps": settings["total_steps"]}


def read_total_steps(keys: Keys) -> int:
    """Where their number is told, above 0; else it follows from the data."""
    told = int(keys.get("max_steps") or 0)
    if told < 1:
        raise Unsaid
    return told


def weight_decay(settings: Settings) -> Keys:
    """Of matrices. The Trainer tells vectors by names, and does not know DoRA's."""
    keys = {"weight_decay": settings["weight_decay"]}
    if settings["dora"] and settings["weight_decay"]:
        raise Cannot("DoRA's magnitudes decay too", Effect.OTHER_NUMBERS, keys=keys)
    return keys


def warmup(settings: Settings) -> Keys:
    """As a share of all steps."""
    return {"warmup_steps": settings["warmup_share"]}


def read_warmup(keys: Keys) -> float:
    """A share of all steps: numbers below 1 are one, whole numbers are steps of all where these are told."""
    steps = float(keys.get("warmup_steps") or 0.0)
    if steps >= 1:
        return steps / read_total_steps(keys)
    if steps:
        return steps
    return float(keys.get("warmup_ratio") or 0.0)


# -- TRL ----------------------------------------------------------------------------------------------------


def trl_method(settings: Settings) -> Keys:
    """LoRA or everything."""
    match settings["method"]:
        case Method.LORA:
            return {"use_peft": True}
        case Method.FULL:
            return {"use_peft": False}
    raise Cannot("its command line knows LoRA and full fine-tuning (train_trl.py takes any adapter)")


def read_trl_method(keys: Keys) -> str:
    """See :func:`trl_method`."""
    return str(Method.LORA if keys.get("use_peft") else Method.FULL)


def trl_targets(value: Any) -> Any:
    """TRL makes a text of a list of one, which PEFT takes for a pattern of whole names: so it gets one."""
    if isinstance(value, str):
        return [value]
    return [rf"(.*\.)?{re.escape(value[0])}"] if len(value) == 1 else value


def read_targets(value: Any) -> Any:
    """Names, a pattern, or ``all-linear``."""
    if isinstance(value, list):
        return value[0] if len(value) == 1 and value[0] == "all-linear" else value
    text = str(value)
    if text in ("all", "all-linear"):
        return "all-linear"
    names = [part.strip() for part in text.split(",")]
    return names if all(re.fullmatch(r"[\w.]+", name) for name in names) else text


def read_trl_targets(value: Any) -> Any:
    """A list of one is a pattern, and may be that of :func:`trl_targets`."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(text, str):
        return value
    name = re.fullmatch(r"\(\.\*\\\.\)\?((?:\w|\\\.)+)", text)
    return [name[1].replace("\\.", ".")] if name else read_targets(text)


def trl_adapter_dtype(settings: Settings) -> Keys:
    """Adapters are float32 beside plain weights, and bfloat16 beside quantized ones."""
    if settings["method"] == Method.FULL:
        return {}
    quantized = settings["quantization"] != Quantization.NONE
    trained = "bfloat16" if quantized else "float32"
    if settings["adapter_dtype"] == trained:
        return {}
    beside = "quantized" if quantized else "plain"
    raise Cannot(f"adapters beside {beside} weights are {trained}", Effect.OTHER_NUMBERS)


def trl_quantization_dtype(settings: Settings) -> Keys:
    """That of the weights as loaded (``trl/trainer/utils.py``, get_quantization_config)."""
    wanted, told = settings["quantization_dtype"], settings["weight_dtype"]
    if Quantization(settings["quantization"]).is_4bit and wanted != told:
        raise Cannot(f"4-bit layers compute in {told}, the dtype of the weights", Effect.OTHER_NUMBERS)
    return {}


def trl_loss(settings: Settings) -> Keys:
    """It computes logits piece by piece always (``trl/trainer/sft_config.py``, loss_type)."""
    if settings["loss"] == "liger":
        return loss(settings)
    if settings["loss"] == "chunked":
        return {}
    raise Cannot("logits are never there all at once: the same numbers with less memory", Effect.OTHER_COST)


def read_trl_loss(keys: Keys) -> str:
    """See :func:`trl_loss`."""
    return "liger" if keys.get("use_liger_kernel") else "chunked"


def trl_quantization(settings: Settings) -> Keys:
    """bitsandbytes' two kinds."""
    match Quantization(settings["quantization"]):
        case Quantization.NONE:
            return {}
        case Quantization.INT8:
            return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": settings["quantization"],
        "use_bnb_nested_quant": settings["double_quantization"],
    }


def read_trl_quantization(keys: Keys) -> str:
    """See :func:`trl_quantization`."""
    if keys.get("load_in_4bit"):
        return str(keys.get("bnb_4bit_quant_type") or Quantization.NF4)
    return str(Quantization.INT8 if keys.get("load_in_8bit") else Quantization.NONE)


def only_usual_skips(settings: Settings) -> Keys:
    """What is not quantized has no key: transformers then leaves the output embeddings alone, and no more.

    A trial names what it trains, and then only that is left alone. Embeddings and norms are no linear layers.
    """
    if settings["quantization"] == Quantization.NONE:
        return {}
    kept = {name for name in settings["trained_modules"] if not NO_LINEAR_LAYER.search(name)}
    if settings["skip_modules"] or kept - OUTPUT_EMBEDDINGS:
        left = ", ".join(sorted({*settings["skip_modules"], *kept - OUTPUT_EMBEDDINGS}))
        raise Cannot(f"it would quantize {left} too, and cannot be told not to")
    if settings["trained_modules"] and not kept:
        raise Cannot("the output embeddings are not quantized; measured, they were", Effect.OTHER_NUMBERS)
    return {}


def trl_packing(settings: Settings) -> Keys:
    """Best fit, which joins the rows of a micro-batch into one without padding."""
    if not settings["packing"]:
        return {"packing": False}
    raise Cannot(
        "samples are packed by its own rule: others meet in an optimizer step",
        Effect.OTHER_NUMBERS,
        keys={"packing": True, "packing_strategy": "bfd", "eval_packing": False},
    )
