"""What cannot work, or cannot be worth trying, each as a named rule with its reason.

Rules that mirror a library were found by trying it, and name the versions; an integration test shows that
the library still behaves so, and fails once it no longer does. Knows nothing of which candidates are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ..probes.profiles import HardwareProfile, ModelProfile, TaskKind
from .domain import Adapter, Level, Method, Quantization
from .methods import METHODS
from .process_rules import PROCESS_LEVEL_RULES, PROCESS_PAIR_RULES
from .rule import BITSANDBYTES, HALF, PEFT, Rule, Setting
from .sizes import quantizable_parameters
from .targets import EXPERT_NAMES_OF_OLD, adapted_modules, has_experts

SUPPORTED_INITIALISATIONS = re.compile(r"gaussian|pissa(_niter_\d+)?|olora|orthogonal")
"""PEFT's others (EVA, CorDA, LoRA-GA, LoftQ) need a pass over data, or scipy, before the training."""

FLASH_CAPABILITY = (8, 0)

ADAPTER_RULES = (
    Rule(
        name="nothing-to-adapt",
        reason="The model has no module of a kind that the method can sit on.",
        versions=None,
        forbids=lambda s: s.adapter.method.has_adapter and not s.kinds,
    ),
    Rule(
        name="nothing-to-unfreeze",
        reason="The model has no such weights of its own (a head may share the embeddings').",
        versions=None,
        forbids=lambda s: s.adapter.method.unfreezes and not s.adapter.trained_parts,
    ),
    Rule(
        name="experts-lora-only",
        reason="Only LoRA adapts stacked experts: AdaLoRA raises, and IA3, OFT and MiSS leave them out.",
        versions=PEFT,
        forbids=lambda s: bool(s.adapter.target_parameters) and s.adapter.method is not Method.LORA,
    ),
    Rule(
        name="unsupported-module",
        reason="PEFT cannot put the method on a module of this kind.",
        versions=PEFT,
        forbids=lambda s: not s.kinds <= METHODS[s.adapter.method].kinds,
    ),
    Rule(
        name="ia3-dropout",
        reason="IA3 has no dropout: PEFT leaves the setting out.",
        versions=PEFT,
        forbids=lambda s: s.adapter.method is Method.IA3 and s.adapter.dropout > 0,
    ),
    Rule(
        name="variant-of-lora",
        reason="rsLoRA, DoRA, initialisations and patterns of ranks are variants of LoRA: the others raise "
        "or ignore them.",
        versions=PEFT,
        forbids=lambda s: (
            s.adapter.method is not Method.LORA
            and bool(
                s.adapter.use_rslora
                or s.adapter.use_dora
                or s.adapter.init_weights
                or s.adapter.rank_pattern
                or s.adapter.alpha_pattern
            )
        ),
    ),
    Rule(
        name="experts-old-names",
        reason="In a mixture PEFT takes gate_proj, up_proj, down_proj, w1, w2, w3 and gate for what experts "
        "were called before: it leaves those layers out, and doubles the experts' rank.",
        versions=PEFT,
        forbids=lambda s: (
            s.adapter.method is Method.LORA
            and has_experts(s.model)
            and any(target.rpartition(".")[2] in EXPERT_NAMES_OF_OLD for target in s.adapter.targets)
        ),
    ),
    Rule(
        name="experts-dropout",
        reason="PEFT adapts stacked experts without dropout only.",
        versions=PEFT,
        forbids=lambda s: bool(s.adapter.target_parameters) and s.adapter.dropout > 0,
    ),
    Rule(
        name="experts-dora",
        reason="PEFT has no DoRA for stacked experts.",
        versions=PEFT,
        forbids=lambda s: bool(s.adapter.target_parameters) and s.adapter.use_dora,
    ),
    Rule(
        name="experts-initialisation",
        reason="PiSSA, OLoRA and orthogonal initialisation need a module's weight: experts have none.",
        versions=PEFT,
        forbids=lambda s: (
            bool(s.adapter.target_parameters) and s.adapter.init_weights not in (None, "gaussian")
        ),
    ),
    Rule(
        name="initialisation-needs-data",
        reason="This initialisation needs a pass over data before the training; rankwise makes none.",
        versions=PEFT,
        forbids=lambda s: (
            s.adapter.init_weights is not None
            and not SUPPORTED_INITIALISATIONS.fullmatch(s.adapter.init_weights)
        ),
    ),
    Rule(
        name="olora-transposed",
        reason="OLoRA takes a transposed linear layer (Conv1D) the wrong way round: its forward pass fails.",
        versions=PEFT,
        forbids=lambda s: s.adapter.init_weights == "olora" and "conv1d" in s.kinds,
    ),
    Rule(
        name="orthogonal-odd-rank",
        reason="Orthogonal initialisation takes even ranks only.",
        versions=PEFT,
        forbids=lambda s: s.adapter.init_weights == "orthogonal" and (s.adapter.rank or 0) % 2 == 1,
    ),
    Rule(
        name="miss-rank-above-input",
        reason="MiSS takes no rank above the input features of a module.",
        versions=PEFT,
        forbids=lambda s: s.adapter.method is Method.MISS and (s.adapter.rank or 0) > s.narrowest_input,
    ),
)
"""About the adapter and the model, whatever the level."""

PAIR_RULES = (
    *PROCESS_PAIR_RULES,
    Rule(
        name="full-quantized",
        reason="Quantized weights are integers, which take no gradient: only adapters can be trained.",
        versions=BITSANDBYTES,
        forbids=lambda s: s.adapter.method is Method.FULL and s.is_quantized,
    ),
    Rule(
        name="full-in-half-precision",
        reason="AdamW's updates are mostly smaller than half a step of a 16-bit weight: they would be lost.",
        versions=None,
        forbids=lambda s: (
            s.adapter.method is Method.FULL
            and s.level.weight_dtype != "float32"
            # DeepSpeed keeps float32 weights beside, and updates those.
            and not s.level.uses_deepspeed
        ),
    ),
    Rule(
        name="bitfit-quantized",
        reason="bitsandbytes casts a quantized layer's bias to its input's dtype in each step: of a trained "
        "one small updates would be lost.",
        versions="bitsandbytes 0.50",
        forbids=lambda s: s.adapter.method is Method.BITFIT and s.is_quantized,
    ),
    Rule(
        name="checkpointing-behind-frozen",
        reason="Below a head that alone is trained nothing is kept for the backward pass: there is nothing "
        "to recompute.",
        versions=None,
        forbids=lambda s: s.adapter.method is Method.HEAD and s.level.gradient_checkpointing,
    ),
    Rule(
        name="adalora-half-precision",
        reason="On 16-bit weights, and 4-bit ones that compute in 16 bits, PEFT makes AdaLoRA's count of "
        "ranks trainable.",
        versions=PEFT,
        forbids=lambda s: (
            s.adapter.method is Method.ADALORA
            and (
                s.level.compute_dtype in HALF
                if s.level.quantization.is_4bit
                else s.level.weight_dtype in HALF and not s.is_quantized
            )
        ),
    ),
    Rule(
        name="attention-half-precision",
        reason="PEFT adds LoRA to the weights of nn.MultiheadAttention in each step and takes it off again: "
        "in 16 bits the frozen weights drift.",
        versions=PEFT,
        forbids=lambda s: "attention" in s.kinds and s.level.weight_dtype in HALF,
    ),
    Rule(
        name="initialisation-quantized",
        reason="PiSSA and orthogonal initialisation take apart weights that are not quantized.",
        versions=PEFT,
        forbids=lambda s: (
            s.is_quantized and (s.adapter.init_weights or "").startswith(("pissa", "orthogonal"))
        ),
    ),
    Rule(
        name="dora-int8-without-gpu",
        reason="On a CPU PEFT loses the scales of 8-bit weights when it unpacks them for DoRA.",
        versions=f"{PEFT}, bitsandbytes 0.50",
        forbids=lambda s: (
            s.adapter.use_dora and s.level.quantization is Quantization.INT8 and not s.hardware.gpus
        ),
    ),
)
"""About an adapter at a level."""

LEVEL_RULES = (
    *PROCESS_LEVEL_RULES,
    Rule(
        name="quantized-without-bitsandbytes",
        reason="Quantization needs the package bitsandbytes, which is not installed.",
        versions="transformers 5.23",
        forbids=lambda s: s.is_quantized and not s.has("bitsandbytes"),
    ),
    Rule(
        name="nothing-to-quantize",
        reason="bitsandbytes quantizes linear layers of the body, not experts: here that is nothing.",
        versions=BITSANDBYTES,
        forbids=lambda s: (
            s.is_quantized
            and not quantizable_parameters(s.model, (*s.adapter.trained_parts, *s.level.skip_modules))
        ),
    ),
    Rule(
        name="double-quantization-of-4-bit",
        reason="Only the scales of 4-bit blocks can be quantized in turn.",
        versions=BITSANDBYTES,
        forbids=lambda s: s.level.double_quantization and not s.level.quantization.is_4bit,
    ),
    Rule(
        name="checkpointing-unsupported",
        reason="transformers has no gradient checkpointing for this model.",
        versions="transformers 5.23",
        forbids=lambda s: s.level.gradient_checkpointing and not s.model.supports_gradient_checkpointing,
    ),
    Rule(
        name="attention-unsupported",
        reason="transformers has no such attention for this model.",
        versions="transformers 5.23",
        forbids=lambda s: s.level.attention not in s.model.attention_kernels,
    ),
    Rule(
        name="flash-attention",
        reason="FlashAttention-2 needs the package flash-attn, a GPU of compute capability 8.0 or higher, "
        "and half precision.",
        versions="transformers 5.23",
        forbids=lambda s: (
            s.level.attention == "flash_attention_2"
            and not (
                s.has("flash-attn")
                and s.level.compute_dtype in HALF
                and s.hardware.gpus
                and all((gpu.compute_capability or (0, 0)) >= FLASH_CAPABILITY for gpu in s.hardware.gpus)
            )
        ),
    ),
    Rule(
        name="loss-of-causal-models",
        reason="Chunked and Liger's losses are those of models that predict the next token.",
        versions=None,
        forbids=lambda s: s.level.loss != "plain" and not (s.task and s.task.is_causal),
    ),
    Rule(
        name="liger",
        reason="Liger's loss needs the package liger-kernel and a GPU.",
        versions=None,
        forbids=lambda s: s.level.loss == "liger" and not (s.has("liger-kernel") and s.hardware.gpus),
    ),
    Rule(
        name="optimizer-without-bitsandbytes",
        reason="8-bit optimizers need the package bitsandbytes, which is not installed.",
        versions=None,
        forbids=lambda s: s.level.optimizer.endswith("_8bit") and not s.has("bitsandbytes"),
    ),
    Rule(
        name="paged-without-gpu",
        reason="Without a GPU nothing is paged: the optimizer is the same as the one that is not.",
        versions="bitsandbytes 0.50",
        forbids=lambda s: s.level.optimizer.startswith("paged_") and not s.hardware.gpus,
    ),
    Rule(
        name="compile-without-gpu",
        reason="On a CPU compiling takes longer than a trial (11 to 58 s were seen for two small layers).",
        versions="torch 2.13",
        forbids=lambda s: s.level.compile and not s.hardware.gpus,
    ),
    Rule(
        name="float16-without-gpu",
        reason="On a CPU accelerate scales no loss and casts nothing for float16: it trains in float32.",
        versions="accelerate 1.15",
        forbids=lambda s: "float16" in s.dtypes and not s.hardware.gpus,
    ),
    Rule(
        name="float16-beside-bfloat16",
        reason="bfloat16 is as fast here as float16, and neither overflows nor needs a scaled loss.",
        versions=None,
        forbids=lambda s: "float16" in s.dtypes and has_bfloat16(s.hardware),
    ),
    Rule(
        name="bfloat16-emulated",
        reason="The device has no arithmetic for bfloat16: emulated, it is slower than float32.",
        versions=None,
        forbids=lambda s: "bfloat16" in s.dtypes and not has_bfloat16(s.hardware),
    ),
    Rule(
        name="quantized-float32",
        reason="Quantized weights are unpacked to the computing dtype: 16 bits are faster here, and leaner.",
        versions=None,
        forbids=lambda s: (
            s.is_quantized
            and s.level.compute_dtype == "float32"
            and (bool(s.hardware.gpus) or has_bfloat16(s.hardware))
        ),
    ),
)
"""About the level on the model, task and hardware; of the adapter they ask only what it trains in full.

Dtypes come last, so that what was asked for by name is refused for what is wrong with it.
"""

BATCH_RULES = (
    Rule(
        name="packed-flash-attention",
        reason="FlashAttention tells samples that share a row apart only where a micro-batch is one row.",
        versions="transformers 5.23",
        forbids=lambda s: s.packing and s.micro_batch > 1 and s.level.attention.startswith("flash_attention"),
    ),
)
"""About the level and the rows of a micro-batch, whatever the adapter."""

RULES = (*ADAPTER_RULES, *PAIR_RULES, *LEVEL_RULES, *BATCH_RULES)


def refusal(
    adapter: Adapter, level: Level, model: ModelProfile, task: TaskKind, hardware: HardwareProfile
) -> Rule | None:
    """The first rule that forbids this adapter at this level; None where it may be tried.

    Of a micro-batch of one row, which no rule about batches forbids.
    """
    return first_refusal(setting_of(adapter, level, model, task, hardware))


def first_refusal(setting: Setting, rules: Collection[Rule] = RULES) -> Rule | None:
    """As :func:`refusal`, by some of the rules."""
    return next((rule for rule in rules if rule.forbids(setting)), None)


def setting_of(
    adapter: Adapter, level: Level, model: ModelProfile, task: TaskKind | None, hardware: HardwareProfile
) -> Setting:
    """The setting, with what the rules ask of the adapted modules."""
    adapted = adapted_modules(adapter, model)
    return Setting(
        adapter=adapter,
        level=level,
        model=model,
        task=task,
        hardware=hardware,
        kinds=frozenset(module.kind for module in adapted),
        narrowest_input=min((module.in_features for module in adapted), default=0),
    )


def has_bfloat16(hardware: HardwareProfile) -> bool:
    """All GPUs, or the CPU where there is none, multiply bfloat16 in hardware; unknown counts as no."""
    if hardware.gpus:
        return all(gpu.supports_bf16 for gpu in hardware.gpus)
    return bool(hardware.host.native_bf16)


def preferred_attention(model: ModelProfile) -> str:
    """PyTorch's own kernels where transformers has them for the model, else what it prefers."""
    return "sdpa" if "sdpa" in model.attention_kernels else model.attention_kernels[0]
