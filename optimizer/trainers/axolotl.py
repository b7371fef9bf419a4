"""Axolotl's words, where they are more than another name. What it does unasked is that of version 0.19."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..domain import Method, Quantization
from .cells import Cannot, Effect, Keys
from .hugging_face import ALL_LOGITS, SIXTEEN_BIT, only_usual_skips, whole
from .hugging_face import read_precision as hugging_face_precision
from .settings import PREPARED, Settings

LIGER = "axolotl.integrations.liger.LigerPlugin"

OWN_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
"""Replacements of PEFT's layers, all switched on for LoRA unless one of them is named."""


def method(settings: Settings) -> Keys:
    """Two adapters are built in; what is trained of the model itself is named by its parameters."""
    kind = Method(settings["method"])
    if kind is Method.LORA:
        adapter = "qlora" if Quantization(settings["quantization"]).is_4bit else "lora"
        return {"adapter": adapter, **dict.fromkeys(OWN_KERNELS, False)}
    if kind is Method.FULL:
        return {}
    if kind.unfreezes:
        parts = [*settings["unfrozen"], *settings["trained_modules"]]
        return {"unfrozen_parameters": [parameter_pattern(part) for part in parts]}
    raise Cannot("the adapters that are built in are lora and qlora")


def parameter_pattern(part: str) -> str:
    """What matches the parameters of a part, from the start of their names.

    Axolotl puts a backslash before every point that no plus follows, so that points stand for themselves here
    and ``.+`` is the one way to say "anything" (``axolotl/utils/freeze.py``).
    """
    return f"(.+.)?{part}(.|$)"


def read_method(keys: Keys) -> str:
    """An adapter of a plugin is told by its own name."""
    adapter = keys.get("adapter")
    if adapter:
        return str(Method.LORA if adapter in ("lora", "qlora") else adapter)
    return str(Method.LAST_BLOCKS if keys.get("unfrozen_parameters") else Method.FULL)


def trained_modules(settings: Settings) -> Keys:
    """Beside an adapter."""
    if Method(settings["method"]).unfreezes or not settings["trained_modules"]:
        return {}
    return {"lora_modules_to_save": settings["trained_modules"]}


def targets(settings: Settings) -> Keys:
    """Names or a pattern, as PEFT takes them."""
    return {"lora_target_modules": settings["targets"]} if settings["targets"] else {}


def read_targets(keys: Keys) -> Any:
    """All linear layers, or those that are named."""
    return "all-linear" if keys.get("lora_target_linear") else keys.get("lora_target_modules") or []


def alphas(pattern: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers all of them."""
    return {name: whole(value) for name, value in pattern.items()}


def read_attention(keys: Keys) -> str:
    """By the newer key, or one of the older switches."""
    switches = {
        "flash_attention": "flash_attention_2",
        "sdp_attention": "sdpa",
        "flex_attention": "flex_attention",
        "eager_attention": "eager",
    }
    told = keys.get("attn_implementation")
    return str(told or next((kernel for name, kernel in switches.items() if keys.get(name)), "sdpa"))


def computed_dtype(settings: Settings) -> str:
    """Weights are loaded in the dtype that is computed in."""
    return str(settings["autocast"] or settings["weight_dtype"])


def precision(settings: Settings) -> Keys:
    """``bf16`` and ``fp16`` are autocast over weights of that dtype; so is ``bfloat16``.

    Float32 is multiplied in TF32, with fewer digits, unless that is switched off.
    """
    computed = computed_dtype(settings)
    flags = {**dict.fromkeys(SIXTEEN_BIT.values(), False), "tf32": False}
    if computed == "float32":
        return flags
    keys = {**flags, SIXTEEN_BIT[computed]: True}
    if settings["autocast"] is not None:
        return keys
    if computed == "float16":
        raise Cannot("float16 weights are trained under autocast only")
    raise Cannot(
        "autocast is on beside bfloat16 weights: norms and losses are computed in float32",
        Effect.OTHER_NUMBERS,
        keys=keys,
    )


def _with_defaults(keys: Keys) -> Keys:
    """``bf16`` is ``auto`` unless it is named: on, where the GPU has it and no float16 is asked for."""
    told = {name: value for name, value in keys.items() if value is not None}
    asked = any(told.get(name) for name in ("fp16", "float16", "bfloat16"))
    return {"bf16": not asked, **told}


def read_precision(keys: Keys) -> str | None:
    """The dtype of autocast; None where it is off. ``float16`` alone loads weights and no more."""
    keys = _with_defaults(keys)
    return hugging_face_precision({**keys, "bf16": keys.get("bf16") or keys.get("bfloat16")})


def weight_dtype(settings: Settings) -> Keys:
    """Float32 weights under autocast are not to be had, nor beside 8-bit layers."""
    loaded, wanted = loaded_dtype(settings), settings["weight_dtype"]
    if wanted == loaded:
        return {}
    if settings["method"] != Method.LORA:
        raise Cannot(f"the weights that are trained would be {loaded} and not {wanted}")
    raise Cannot(f"frozen weights are loaded in {loaded}, not in {wanted}", Effect.OTHER_NUMBERS)


def loaded_dtype(settings: Settings) -> str:
    """8-bit models are float16 where nothing else is asked for."""
    computed = computed_dtype(settings)
    is_int8 = settings["quantization"] == Quantization.INT8
    return "float16" if is_int8 and computed == "float32" else computed


def read_weight_dtype(keys: Keys) -> str:
    """8-bit models are float16 beside what is quantized."""
    keys = _with_defaults(keys)
    if keys.get("bf16") or keys.get("bfloat16"):
        return "bfloat16"
    return "float16" if any(keys.get(name) for name in ("fp16", "float16", "load_in_8bit")) else "float32"


def adapter_dtype(settings: Settings) -> Keys:
    """PEFT makes adapters float32 unless it is told otherwise; what is unfrozen stays as it is."""
    if Method(settings["method"]).unfreezes and settings["adapter_dtype"] != computed_dtype(settings):
        raise Cannot(f"what is trained would be {computed_dtype(settings)}")
    if settings["method"] != Method.LORA or settings["adapter_dtype"] == "float32":
        return {}
    if settings["adapter_dtype"] == loaded_dtype(settings):
        return {"peft_autocast_adapter_dtype": False}
    raise Cannot("adapters are float32, or of the weights' dtype", Effect.OTHER_NUMBERS)


def read_adapter_dtype(keys: Keys) -> str:
    """PEFT makes adapters float32 unless that is switched off; all else keeps the dtype of its loading."""
    if keys.get("adapter") and keys.get("peft_autocast_adapter_dtype") is not False:
        return "float32"
    return read_weight_dtype(keys)


def quantization(settings: Settings) -> Keys:
    """Unless it is told otherwise, Axolotl quantizes the scales of 4-bit blocks too."""
    if settings["quantization"] != Quantization.NONE and settings["method"] != Method.LORA:
        raise Cannot("without one of its adapters nothing is quantized")
    match Quantization(settings["quantization"]):
        case Quantization.NONE:
            return {}
        case Quantization.INT8:
            return {"load_in_8bit": True}
    overrides: dict[str, Any] = {
        "bnb_4bit_quant_type": settings["quantization"],
        "bnb_4bit_use_double_quant": settings["double_quantization"],
    }
    kept = [*settings["trained_modules"], *settings["skip_modules"]]
    if kept:
        overrides["llm_int8_skip_modules"] = kept
    return {"load_in_4bit": True, "bnb_config_kwargs": overrides}


def read_quantization(keys: Keys) -> str:
    """See :func:`quantization`."""
    if keys.get("load_in_4bit"):
        return str((keys.get("bnb_config_kwargs") or {}).get("bnb_4bit_quant_type") or Quantization.NF4)
    return str(Quantization.INT8 if keys.get("load_in_8bit") else Quantization.NONE)


def read_double_quantization(keys: Keys) -> bool:
    """On unless it is switched off."""
    told = (keys.get("bnb_config_kwargs") or {}).get("bnb_4bit_use_double_quant", True)
    return bool(keys.get("load_in_4bit")) and bool(told)


def read_skip_modules(keys: Keys) -> list[str]:
    """Those that are named, but for what is trained."""
    told = (keys.get("bnb_config_kwargs") or {}).get("llm_int8_skip_modules") or []
    trained = keys.get("lora_modules_to_save") or []
    return [name for name in told if name not in trained] if keys.get("load_in_4bit") else []


def skip_modules(settings: Settings) -> Keys:
    """Named among the overrides of 4-bit quantization."""
    return {} if Quantization(settings["quantization"]).is_4bit else only_usual_skips(settings)


def loss(settings: Settings) -> Keys:
    """Liger's loss is a plugin. Its own chunks are of logits that are there, compiled for themselves."""
    match settings["loss"]:
        case "chunked":
            raise ALL_LOGITS
        case "liger":
            return {"plugins": [LIGER], "liger_fused_linear_cross_entropy": True}
    return {}


def read_loss(keys: Keys) -> str:
    """See :func:`loss`."""
    if keys.get("liger_fused_linear_cross_entropy"):
        return "liger"
    return "chunked" if keys.get("chunked_cross_entropy") else "plain"


def packing(settings: Settings) -> Keys:
    """Its own way of packing, told apart by position ids as ours."""
    if not settings["packing"]:
        return {"sample_packing": False, "pad_to_sequence_len": False}
    raise Cannot(
        "samples are packed by its own rule: others meet in an optimizer step",
        Effect.OTHER_NUMBERS,
        keys={"sample_packing": True, "eval_sample_packing": False, "pad_to_sequence_len": False},
    )


def row_order(_: Settings) -> Keys:
    """Rows are taken as they come only if nothing shuffles them on the way either."""
    return {"shuffle_merged_datasets": False, "curriculum_sampling": True}


def read_row_order(keys: Keys) -> str | None:
    """Of several files one after the other, shuffling undoes the order whatever is sampled in turn."""
    files = keys.get("datasets")
    shuffled = keys.get("shuffle_merged_datasets") is not False and isinstance(files, list) and len(files) > 1
    return PREPARED if keys.get("curriculum_sampling") and not shuffled else None


def warmup(settings: Settings) -> Keys:
    """In steps: a share would be rounded down. Of one it makes two (``axolotl/core/builders/base.py``)."""
    steps = math.ceil(settings["total_steps"] * settings["warmup_share"])
    keys = {"warmup_steps": steps}
    if steps == 1:
        raise Cannot("a single step of warm-up is made two", Effect.OTHER_NUMBERS, keys=keys)
    return keys


def max_length(settings: Settings) -> Keys:
    """Prepared rows are short enough; were one not, it would be left out without a word."""
    return {"sequence_len": settings["max_length"], "excess_length_strategy": "raise"}
