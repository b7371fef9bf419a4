"""LLaMA-Factory's words, where they are more than another name; what it does unasked is that of 0.9.5."""

from __future__ import annotations

import math
from typing import Any

from ..domain import Method, Quantization
from .cells import Cannot, Effect, Keys
from .hugging_face import ALL_LOGITS, precision, whole
from .settings import Settings

ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2", "flash_attention_3": "fa3"}


def method(settings: Settings) -> Keys:
    """LoRA, everything, or the last blocks. Its OFT has other parameters than PEFT's newer one."""
    match settings["method"]:
        case Method.LORA:
            return {"finetuning_type": "lora"}
        case Method.FULL:
            return {"finetuning_type": "full"}
        case Method.LAST_BLOCKS:
            if settings["trained_modules"]:
                # Looked for anywhere within names: "norm" would be the norms of all blocks.
                raise Cannot(
                    "beside the last blocks, modules are told by parts of names that others have too"
                )
            return {
                "finetuning_type": "freeze",
                "freeze_trainable_layers": settings["last_blocks"],
                "freeze_trainable_modules": "all",
            }
    raise Cannot("the methods are lora, oft, freeze (the last blocks) and full")


def read_method(keys: Keys) -> str:
    """LoRA unless another is named."""
    named = keys.get("finetuning_type") or "lora"
    return str(Method.LAST_BLOCKS if named == "freeze" else named)


def targets(value: Any) -> str:
    """Names with commas between them."""
    if isinstance(value, str):
        raise Cannot("targets are named, and cannot be a pattern")
    return ",".join(value)


def trained_modules(settings: Settings) -> Keys:
    """Beside LoRA."""
    if settings["method"] != Method.LORA or not settings["trained_modules"]:
        return {}
    return {"additional_target": ",".join(settings["trained_modules"])}


def init_weights(settings: Settings) -> Keys:
    """PiSSA is the one initialisation beside the usual one."""
    match settings["init_weights"]:
        case None:
            return {}
        case "pissa":
            return {"pissa_init": True, "pissa_iter": -1}
    raise Cannot("adapters start as usual or by PiSSA")


def read_trained_modules(keys: Keys) -> list[str]:
    """Names with commas between them."""
    told = keys.get("additional_target")
    return told.split(",") if isinstance(told, str) else list(told or ())


def alpha(settings: Settings) -> Keys:
    """A whole number."""
    return {} if settings["alpha"] is None else {"lora_alpha": whole(settings["alpha"])}


def read_alpha(keys: Keys) -> float:
    """Twice the rank where nobody says."""
    return float(keys.get("lora_alpha") or 2 * int(keys.get("lora_rank") or 8))


def weight_dtype(settings: Settings) -> Keys:
    """Loaded in the dtype that is computed in; what is trained becomes float32 then."""
    computed, wanted = settings["autocast"] or settings["weight_dtype"], settings["weight_dtype"]
    if computed == "float32" and not settings["cpu"]:
        # extras/misc.py, infer_optim_dtype: by what the model's configuration names, and never float32.
        if settings["method"] != Method.FULL:
            raise Cannot("without autocast a GPU gets frozen weights in bfloat16 or float16")
        raise Cannot(
            "on a GPU weights are rounded to 16 bits before they become float32", Effect.OTHER_NUMBERS
        )
    if wanted == computed or settings["method"] == Method.FULL:
        return {}
    raise Cannot(f"frozen weights are loaded in {computed}, not in {wanted}", Effect.OTHER_NUMBERS)


def read_weight_dtype(keys: Keys) -> str:
    """See :func:`weight_dtype`."""
    if keys.get("bf16") or keys.get("pure_bf16"):
        return "bfloat16"
    return "float16" if keys.get("fp16") else "float32"


def autocast(settings: Settings) -> Keys:
    """16-bit weights without autocast are one setting, for bfloat16 only."""
    flags = precision(settings)
    if settings["autocast"] is not None or settings["weight_dtype"] == "float32":
        return flags
    if settings["weight_dtype"] == "bfloat16":
        if settings["cpu"]:
            raise Cannot("without autocast bfloat16 weights are trained on a GPU only")
        return {**flags, "pure_bf16": True}
    raise Cannot("float16 weights are trained under autocast only")


def adapter_dtype(settings: Settings) -> Keys:
    """PEFT makes adapters float32; weights of the model itself become it too, but in pure bfloat16."""
    pure = settings["autocast"] is None and settings["weight_dtype"] == "bfloat16"
    trained = "bfloat16" if pure and settings["method"] != Method.LORA else "float32"
    if settings["method"] == Method.FULL or settings["adapter_dtype"] == trained:
        return {}
    raise Cannot(f"what is trained is {trained}", Effect.OTHER_NUMBERS)


def quantization(settings: Settings) -> Keys:
    """By bitsandbytes, which it calls a method."""
    if settings["quantization"] != Quantization.NONE and settings["method"] != Method.LORA:
        raise Cannot("quantized models are trained with its adapters only")
    match Quantization(settings["quantization"]):
        case Quantization.NONE:
            return {}
        case Quantization.INT8:
            return {"quantization_method": "bnb", "quantization_bit": 8}
    return {
        "quantization_method": "bnb",
        "quantization_bit": 4,
        "quantization_type": settings["quantization"],
        "double_quantization": settings["double_quantization"],
    }


def read_quantization(keys: Keys) -> str:
    """See :func:`quantization`."""
    bits = keys.get("quantization_bit")
    if not bits:
        return str(Quantization.NONE)
    return str(Quantization.INT8 if int(bits) == 8 else keys.get("quantization_type") or Quantization.NF4)


def read_double_quantization(keys: Keys) -> bool:
    """On unless it is switched off."""
    return str(keys.get("quantization_bit")) == "4" and bool(keys.get("double_quantization", True))


def checkpointing(settings: Settings) -> Keys:
    """On unless it is switched off, and re-entrant unless it is told otherwise."""
    if not settings["gradient_checkpointing"]:
        return {"disable_gradient_checkpointing": True}
    return {"disable_gradient_checkpointing": False, "use_reentrant_gc": False}


def loss(settings: Settings) -> Keys:
    """Liger comes with all its kernels or not at all."""
    if settings["loss"] == "plain":
        return {}
    raise ALL_LOGITS


def packing(settings: Settings) -> Keys:
    """Rows that are tokenised already are not packed any more."""
    if not settings["packing"]:
        return {"packing": False}
    raise Cannot("prepared rows are not packed: an optimizer step would learn fewer tokens")


def warmup(settings: Settings) -> Keys:
    """In steps: the versions of transformers that it takes have no common word for a share."""
    return {"warmup_steps": math.ceil(settings["total_steps"] * settings["warmup_share"])}
