"""What may be wrong with a trainer's settings, or better otherwise, each as a named rule.

What a training needs, and whether its model has the targets, is told by an estimate, elsewhere. Rules that
mirror a library name the versions that they were seen with; where a rule of studies says the same, its reason
is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..domain import Method, Quantization
from ..methods import learning_rate
from ..rules import RULES
from .file_facts import Facts, FileRule, Severity, called
from .reading import OPTIMIZERS

RATE_APART = 8.0
"""A rate so many times below what suits LoRA, or above what suits full fine-tuning, is the other one: they
are ten times apart ("LoRA Without Regret", Schulman et al. 2025)."""

WIDEST = 8192
NARROWEST = 384
"""Hidden sizes between which most models lie: wider ones take lower rates."""

LOUDEST = 8.0
"""An adapter that is scaled by more than this …"""
FAINTEST = 0.1
"""… or less is seldom meant: alpha is mostly one or two times the rank."""

KEEPS_APART = ("flash", "flex", "sdpa", "eager", "xformers", "sage")
"""Attention kernels, by the beginnings of their names, with which Axolotl keeps samples apart."""

_RULES_BY_NAME = {rule.name: rule for rule in RULES}


def _reason(name: str) -> Callable[[Facts], str]:
    """That of the rule which keeps the same out of studies."""
    return lambda _: _RULES_BY_NAME[name].reason.removesuffix(".")


def _versions(name: str) -> str | None:
    return _RULES_BY_NAME[name].versions


def _names_adapter(facts: Facts) -> bool:
    return any(
        facts.keys.get(name) not in (None, [], {}, "", False)
        for name in ("lora_r", "lora_rank", "lora_alpha", "lora_target_modules", "lora_target")
    )


def _suits(method: Method, facts: Facts) -> float:
    """The method's usual rate; where the model's width is unknown, the one that is complained of least."""
    width = facts.hidden_size or (WIDEST if method is Method.LORA else NARROWEST)
    return learning_rate(method, width)


def _begin_with(method: Method, facts: Facts) -> str:
    return "" if facts.hidden_size is None else f" ({_suits(method, facts):g} is where to begin)"


def _deepspeed_differs(facts: Facts, setting: str) -> bool:
    """Both files name a number, and not the same one (``auto`` takes the other's)."""
    if facts.deepspeed is None:
        return False
    told = facts.deepspeed.settings.get(setting) if setting in facts.deepspeed.said else None
    own = facts.reading.get(setting)
    return told is not None and own is not None and told != own


def _deepspeed_batch(facts: Facts) -> int | None:
    """The rows of an optimizer step that DeepSpeed's file names; None where it leaves it open."""
    told = None if facts.deepspeed is None else facts.deepspeed.keys.get("train_batch_size")
    return told if isinstance(told, int) else None


def _is_classifier(architecture: str | None) -> bool:
    return (architecture or "").endswith(("ForSequenceClassification", "ForTokenClassification"))


def _head_is_frozen(facts: Facts) -> bool:
    adapter = facts.adapter or (facts.reading if facts.reading.trainer == "peft" else None)
    if adapter is None or not _is_classifier(facts.architecture):
        return False
    adds_head = adapter.keys.get("task_type") in ("SEQ_CLS", "TOKEN_CLS")
    return not adds_head and not adapter.keys.get("modules_to_save")


def _optimizer(facts: Facts) -> str:
    return str(facts.reading.get("optimizer", ""))


def _warmup_steps(facts: Facts) -> float:
    told = facts.keys.get("warmup_steps")
    return float(told) if isinstance(told, int | float) else 0.0


def _most_steps(facts: Facts) -> float:
    told = facts.keys.get("max_steps")
    return float(told) if isinstance(told, int | float) else -1.0


def _use_reentrant(facts: Facts) -> Any:
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        block = facts.keys.get(name)
        if isinstance(block, Mapping):
            return block.get("use_reentrant")
    return None


def _packs_without_bounds(facts: Facts) -> bool:
    """Samples share rows, and no attention is named that keeps them apart."""
    if facts.reading.trainer != "axolotl" or not facts.reading.get("packing"):
        return False
    switches = ("flash_attention", "sdp_attention", "flex_attention", "eager_attention")
    named = facts.keys.get("attn_implementation") or ""
    by_switch = any(facts.keys.get(name) for name in (*switches, "xformers_attention", "sage_attention"))
    return not by_switch and not str(named).startswith(KEEPS_APART)


def _single_target(facts: Facts) -> str | None:
    told = facts.keys.get("lora_target_modules")
    names = [told] if isinstance(told, str) else told
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else None


def _has_single_name(facts: Facts) -> bool:
    """TRL is given one target, and that is a name, not a pattern."""
    name = _single_target(facts)
    return facts.reading.trainer == "trl" and name is not None and name.replace("_", "").isalnum()


FILE_RULES = (
    FileRule(
        id="both-precisions",
        severity=Severity.ERROR,
        applies=lambda f: f.keys.get("bf16") is True and f.keys.get("fp16") is True,
        message=lambda _: "bf16 and fp16 are both on, and only one of them can be",
        next_step="keep bf16 on GPUs that have it (Ampere and later), else fp16",
        keys=("fp16",),
        versions="transformers 5.23",
    ),
    FileRule(
        id="both-quantizations",
        severity=Severity.ERROR,
        applies=lambda f: bool(f.keys.get("load_in_4bit")) and bool(f.keys.get("load_in_8bit")),
        message=lambda _: "load_in_4bit and load_in_8bit are both on, and weights have one form",
        next_step="keep one of them",
        keys=("load_in_8bit",),
        versions="transformers 5.23",
    ),
    FileRule(
        id="full-quantized",
        severity=Severity.ERROR,
        applies=lambda f: f.reading.method is Method.FULL and f.reading.quantization is not Quantization.NONE,
        message=_reason("full-quantized"),
        next_step="name an adapter, or load the weights unquantized",
        keys=("quantization",),
        versions=_versions("full-quantized"),
    ),
    FileRule(
        id="adapter-not-named",
        severity=Severity.WARNING,
        applies=lambda f: f.trains and f.reading.method is Method.FULL and _names_adapter(f),
        message=lambda _: (
            "settings of LoRA are given, and no LoRA is asked for: all weights would be trained"
        ),
        next_step="add use_peft: true (TRL), adapter: lora (Axolotl), finetuning_type: lora (LLaMA-Factory)",
        keys=("lora_r", "lora_rank", "lora_alpha", "lora_target_modules", "lora_target"),
    ),
    FileRule(
        id="qlora-unquantized",
        severity=Severity.ERROR,
        applies=lambda f: f.keys.get("adapter") == "qlora" and not f.keys.get("load_in_4bit"),
        message=lambda _: "adapter is qlora, and load_in_4bit is not on, which Axolotl asks for",
        next_step="add load_in_4bit: true, or write adapter: lora",
        keys=("adapter",),
        versions="axolotl 0.19",
    ),
    FileRule(
        id="experts-dropout",
        severity=Severity.ERROR,
        applies=lambda f: (
            f.is_lora and bool(f.reading.get("target_parameters")) and bool(f.reading.get("dropout"))
        ),
        message=_reason("experts-dropout"),
        next_step="set the dropout to 0",
        keys=("dropout", "target_parameters"),
        versions=_versions("experts-dropout"),
    ),
    FileRule(
        id="experts-dora",
        severity=Severity.ERROR,
        applies=lambda f: (
            f.is_lora and bool(f.reading.get("target_parameters")) and bool(f.reading.get("dora"))
        ),
        message=_reason("experts-dora"),
        next_step="leave DoRA out, or the experts",
        keys=("dora", "target_parameters"),
        versions=_versions("experts-dora"),
    ),
    FileRule(
        id="flash-attention-float32",
        severity=Severity.ERROR,
        applies=lambda f: (
            "attention" in f.reading.said
            and "flash" in str(f.reading.get("attention", ""))
            and not f.computes_in_half
        ),
        message=lambda f: (
            f"{f.reading.get('attention')} computes in 16 bits only, and float32 is what is asked for"
        ),
        next_step="load the weights as bfloat16, switch bf16 on, or take the attention sdpa",
        keys=("attention",),
        versions=_versions("flash-attention"),
    ),
    FileRule(
        id="packing-mixes-samples",
        severity=Severity.WARNING,
        applies=_packs_without_bounds,
        message=lambda _: (
            "samples are packed into rows, and no attention is named that keeps them apart: each sees "
            "those before it in its row"
        ),
        next_step="add flash_attention: true or sdp_attention: true, or switch sample_packing off",
        keys=("packing",),
        versions="axolotl 0.19",
    ),
    FileRule(
        id="packing-contaminates",
        severity=Severity.WARNING,
        applies=lambda f: (
            f.reading.trainer == "llamafactory"
            and bool(f.keys.get("packing"))
            and not f.keys.get("neat_packing")
        ),
        message=lambda _: "packing without neat_packing lets each sample see those before it in its row",
        next_step="add neat_packing: true",
        keys=("packing",),
        versions="llamafactory 0.9.5",
    ),
    FileRule(
        id="without-bitsandbytes",
        severity=Severity.WARNING,
        applies=lambda f: (
            f.libraries is not None
            and "bitsandbytes" not in f.libraries
            and ("8bit" in _optimizer(f) or f.reading.quantization is not Quantization.NONE)
        ),
        message=lambda _: "this needs the package bitsandbytes, which is not installed here",
        next_step="pip install bitsandbytes",
        keys=("optimizer", "quantization"),
    ),
    FileRule(
        id="single-target",
        severity=Severity.ERROR,
        applies=_has_single_name,
        message=lambda f: (
            f"TRL takes a single target ({_single_target(f)}) for a pattern of whole names: nothing "
            "matches it"
        ),
        next_step="write it as a pattern such as '.*q_proj', or name two modules",
        keys=("targets",),
        versions="trl 1.16, peft 0.21",
    ),
    FileRule(
        id="scale-of-adapter",
        severity=Severity.HINT,
        applies=lambda f: f.scale is not None and not FAINTEST <= f.scale <= LOUDEST,
        message=lambda f: (
            f"alpha {f.reading.get('alpha'):g} at rank {f.reading.get('rank')} scales what LoRA learns by "
            f"{f.scale:.3g}; usual is 1 or 2"
        ),
        next_step="take an alpha of one or two times the rank"
        " (with rsLoRA, of its square root), or a rate that makes up for it",
        keys=("alpha", "rank"),
    ),
    FileRule(
        id="rate-of-full-fine-tuning",
        severity=Severity.WARNING,
        applies=lambda f: (
            f.is_lora
            and f.reading.get("learning_rate") is not None
            and f.reading.get("learning_rate") * RATE_APART <= _suits(Method.LORA, f)
        ),
        message=lambda f: (
            f"the learning rate {f.reading.get('learning_rate'):g} suits full fine-tuning: LoRA learns "
            f"best at about ten times as much{_begin_with(Method.LORA, f)}"
        ),
        next_step="raise it, or let rankwise recommend measure which suits your data",
        keys=("learning_rate",),
    ),
    FileRule(
        id="rate-of-lora",
        severity=Severity.WARNING,
        applies=lambda f: (
            f.trains
            and f.reading.method is Method.FULL
            and f.reading.get("learning_rate") is not None
            and f.reading.get("learning_rate") >= RATE_APART * _suits(Method.FULL, f)
        ),
        message=lambda f: (
            f"the learning rate {f.reading.get('learning_rate'):g} suits LoRA: full fine-tuning learns "
            f"best at about a tenth{_begin_with(Method.FULL, f)}"
        ),
        next_step="lower it, or name an adapter",
        keys=("learning_rate",),
    ),
    FileRule(
        id="reentrant-checkpointing",
        severity=Severity.HINT,
        applies=lambda f: (
            bool(f.reading.get("gradient_checkpointing"))
            and _use_reentrant(f) is True
            and f.reading.method is not Method.FULL
        ),
        message=lambda _: (
            "re-entrant checkpointing passes gradients on only where a block's input has one: below an "
            "adapter inputs have to be made to, or nothing is learnt"
        ),
        next_step="write use_reentrant: false, which PyTorch recommends",
        keys=("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        versions="torch 2.13, peft 0.21",
    ),
    FileRule(
        id="warmup-beyond-end",
        severity=Severity.ERROR,
        applies=lambda f: 0 < _most_steps(f) <= _warmup_steps(f),
        message=lambda f: (
            f"the rate climbs for {_warmup_steps(f):g} steps, and the training ends after "
            f"{_most_steps(f):g}: it never gets to its learning rate"
        ),
        next_step="warm up for some 3 to 10 % of the steps",
        keys=("warmup_steps",),
    ),
    FileRule(
        id="double-quantization-alone",
        severity=Severity.HINT,
        applies=lambda f: bool(f.keys.get("use_bnb_nested_quant")) and not f.reading.quantization.is_4bit,
        message=_reason("double-quantization-of-4-bit"),
        next_step="leave it out",
        keys=("use_bnb_nested_quant",),
        versions=_versions("double-quantization-of-4-bit"),
    ),
    FileRule(
        id="float32-weights",
        severity=Severity.WARNING,
        applies=lambda f: (
            f.reading.trainer == "trl"
            and f.is_lora
            and "weight_dtype" not in f.reading.said
            and f.keys.get("dtype") is None
        ),
        message=lambda _: (
            "weights are loaded as float32, which is TRL's default: twice the memory of bfloat16"
        ),
        next_step="write dtype: bfloat16 (frozen weights lose nothing that LoRA would notice)",
        keys=("use_peft",),
        versions="trl 1.16",
    ),
    FileRule(
        id="computes-in-float32",
        severity=Severity.WARNING,
        applies=lambda f: (
            f.reading.trainer in ("llamafactory", "transformers")
            and not f.computes_in_half
            and "autocast" not in f.reading.said
            and not f.reading.get("cpu")
        ),
        message=lambda f: (
            f"neither bf16 nor fp16 is named, and {called(f.reading.trainer)} leaves both off: it computes "
            "in float32, several times slower on a GPU"
        ),
        next_step="write bf16: true (fp16: true on GPUs before Ampere)",
    ),
    FileRule(
        id="deepspeed-micro-batch",
        severity=Severity.ERROR,
        applies=lambda f: _deepspeed_differs(f, "micro_batch"),
        message=lambda f: (
            f"DeepSpeed's file says micro-batches of {f.deepspeed and f.deepspeed.get('micro_batch')} rows, "
            f"and this one {f.reading.get('micro_batch')}"
        ),
        next_step='write "auto" in DeepSpeed\'s file',
        keys=("micro_batch",),
        versions="transformers 5.23",
    ),
    FileRule(
        id="deepspeed-accumulation",
        severity=Severity.ERROR,
        applies=lambda f: _deepspeed_differs(f, "accumulation"),
        message=lambda f: (
            f"DeepSpeed's file accumulates {f.deepspeed and f.deepspeed.get('accumulation')} micro-batches, "
            f"and this one {f.reading.get('accumulation')}"
        ),
        next_step='write "auto" in DeepSpeed\'s file',
        keys=("accumulation",),
        versions="transformers 5.23",
    ),
    FileRule(
        id="deepspeed-batch",
        severity=Severity.ERROR,
        applies=lambda f: (
            f.gpus is not None
            and _deepspeed_batch(f) is not None
            and _deepspeed_batch(f)
            != f.gpus * f.reading.get("micro_batch", 1) * f.reading.get("accumulation", 1)
        ),
        message=lambda f: (
            f"DeepSpeed's train_batch_size is {_deepspeed_batch(f)}, and {f.gpus} GPUs × "
            f"{f.reading.get('micro_batch', 1)} rows × {f.reading.get('accumulation', 1)} are "
            f"{(f.gpus or 1) * f.reading.get('micro_batch', 1) * f.reading.get('accumulation', 1)}"
        ),
        next_step='write "auto" there',
        keys=("train_batch_size", "deepspeed"),
        versions="deepspeed 0.19",
    ),
    FileRule(
        id="adalora-without-steps",
        severity=Severity.ERROR,
        applies=lambda f: (
            (f.adapter or f.reading).trainer == "peft"
            and (f.adapter or f.reading).method is Method.ADALORA
            and not (f.adapter or f.reading).keys.get("total_step")
        ),
        message=lambda _: (
            "AdaLoRA has to know how many steps the training takes, and total_step is not given"
        ),
        next_step="write total_step",
        keys=("total_step", "peft_type"),
        versions="peft 0.21",
    ),
    FileRule(
        id="frozen-head",
        severity=Severity.WARNING,
        applies=_head_is_frozen,
        message=lambda f: (
            f"the model is a {f.architecture}, and neither task_type nor modules_to_save has its head "
            "trained: a new one would stay as it was drawn"
        ),
        next_step='write "task_type": "SEQ_CLS", or name the head in modules_to_save',
        keys=("task_type", "modules_to_save"),
        versions="peft 0.21",
    ),
    FileRule(
        id="optimizer-not-estimated",
        severity=Severity.HINT,
        applies=lambda f: f.trains and bool(_optimizer(f)) and _optimizer(f) not in OPTIMIZERS,
        message=lambda f: (
            f"rankwise does not run the optimizer {_optimizer(f)!r:.40}; memory is told for an AdamW that "
            "comes closest to it"
        ),
        next_step="",
        keys=("optimizer",),
    ),
)
"""In the order in which they are told."""
