"""From a candidate to a model and an optimizer that train it.

Imports nothing of rankwise but :mod:`.weights`, which is free of it too: dry run, trial and exported script
share these sources, so that what was estimated is what is measured and what is handed over. A candidate is a
plain mapping (its JSON form).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from .weights import load_base

AUTOCAST_NAMES = {"bfloat16": "bf16", "float16": "fp16"}


IA3_VECTOR = ".ia3_l."
"""In the names of IA3's factors, which PEFT keeps as a row or a column."""


class InvalidTrial(Exception):
    """What would run, or ran, is not what was configured."""


def build_model(
    model_path: str,
    *,
    task: Mapping[str, Any],
    candidate: Mapping[str, Any],
    adapter_config: Mapping[str, Any] | None,
    pad_id: int,
    seed: int,
    device: torch.device,
    has_weights: bool = True,
    trust_remote_code: bool = False,
    factory: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """Load the base model, set the level's switches, and wrap it in the candidate's adapter.

    What a factory makes has no such switches but those that transformers' models have.

    The seed fixes what is initialised here: a new head and the adapter, or all weights if there are none.

    Quantized models do not go through PEFT's ``prepare_model_for_kbit_training``: it makes float32 copies
    of everything that is not quantized (2 GiB for the embeddings and head of an 8-billion-parameter Llama).
    Those stay in ``weight_dtype``; what is trained is float32 all the same, models compute their norms in
    float32 by themselves, and checkpointing without re-entrance needs no gradient of the inputs.
    """
    torch.manual_seed(seed)
    level = candidate["level"]
    model = load_base(
        model_path,
        task=task,
        level=level,
        trained_modules=trained_parts(candidate["adapter"]),
        skip_modules=level["skip_modules"],
        device=device,
        seed=seed,
        has_weights=has_weights,
        trust_remote_code=trust_remote_code,
        factory=factory,
    )
    if factory is None:
        for config in (
            model.config,
            model.config.get_text_config(),
        ):  # of composite models the latter is read
            config.pad_token_id = pad_id
            config.use_cache = False
        if model.config.is_encoder_decoder and getattr(model.config, "decoder_start_token_id", None) is None:
            # A bare T5Config (5.23) has none; T5 starts with padding.
            model.config.decoder_start_token_id = pad_id
    model.train()
    if level["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    dtype = getattr(torch, level["adapter_dtype"])
    if adapter_config is not None:
        return add_adapter(model, adapter_config, dtype=dtype)
    if candidate["adapter"]["method"] != "full":
        freeze_rest(model, trained_parts(candidate["adapter"]), dtype=dtype)
    return model


def trained_parts(adapter: Mapping[str, Any]) -> list[str]:
    """What is trained of the model itself."""
    return [*adapter["trained_modules"], *adapter["unfrozen"]]


def freeze_rest(model: torch.nn.Module, parts: Sequence[str], *, dtype: torch.dtype) -> None:
    """Train these parts in ``dtype``, and nothing else. A part stands between dots in a parameter's name."""
    for name, parameter in model.named_parameters():
        trains = any(f".{part}." in f".{name}." for part in parts)
        if trains:
            parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(trains)


def add_adapter(
    model: torch.nn.Module, adapter_config: Mapping[str, Any], *, dtype: torch.dtype
) -> torch.nn.Module:
    """Wrap the model as PEFT does, what is trained in ``dtype``.

    A saved adapter names its base as the configuration does; PEFT would put the model's folder there.
    """
    from peft import PeftConfig, get_peft_model  # imports bitsandbytes: see make_optimizer

    model.name_or_path = adapter_config["base_model_name_or_path"]
    wrapped: torch.nn.Module = get_peft_model(model, PeftConfig.from_peft_type(**adapter_config))
    for name, parameter in wrapped.named_parameters():
        if ".ranknum." in name:
            # AdaLoRA's divisor: PEFT 0.21 trains it unless weights are float32.
            parameter.requires_grad_(False)
        elif parameter.requires_grad:  # PEFT leaves a trained head in the weights' dtype
            parameter.data = parameter.data.to(dtype)
    return wrapped


def autocast_name(level: Mapping[str, Any]) -> str:
    """accelerate's ``mixed_precision``: on where computing, weights and adapter differ in dtype."""
    compute = level["compute_dtype"]
    if level["weight_dtype"] == compute == level["adapter_dtype"]:
        return "no"
    return AUTOCAST_NAMES[compute]


def make_optimizer(model: torch.nn.Module, candidate: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters only; weight decay spares vectors (biases, norms, IA3).

    Raises:
        InvalidTrial: the optimizer needs another device.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    vectors = [p for name, p in trained.items() if p.dim() <= 1 or IA3_VECTOR in name]
    matrices = [p for name, p in trained.items() if p.dim() > 1 and IA3_VECTOR not in name]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": candidate["recipe"]["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    name, rate = candidate["level"]["optimizer"], candidate["learning_rate"]
    if name in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(groups, lr=rate, fused=True if name == "adamw_torch_fused" else None)
    import bitsandbytes  # initialises CUDA, which the process that trials are forked from must not

    if name == "adamw_8bit":
        return bitsandbytes.optim.AdamW8bit(groups, lr=rate)
    if groups[0]["params"][0].device.type != "cuda":
        raise InvalidTrial(f"{name} moves states between the memories of a CUDA device and the host")
    return bitsandbytes.optim.PagedAdamW8bit(groups, lr=rate)


def make_schedule(optimizer: torch.optim.Optimizer, *, recipe: Mapping[str, Any], total_steps: int) -> Any:
    """transformers' schedule of this name over ``total_steps``, warm-up included."""
    return transformers.get_scheduler(
        recipe["schedule"],
        optimizer,
        num_warmup_steps=math.ceil(total_steps * recipe["warmup_ratio"]),
        num_training_steps=total_steps,
    )


@dataclass(frozen=True, slots=True)
class Census:
    """What a model consists of and which of it is trained, counted while it is whole."""

    trained: int
    """Numbers in all parameters that are trained."""
    total: int
    trained_sha256: str
    """See :func:`trainable_sha256`."""


def census_of(model: torch.nn.Module) -> Census:
    """Count. bitsandbytes stores two numbers of 4 bits as one byte."""
    states = [(parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters()]
    return Census(
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=sum(p.numel() if state is None else math.prod(state.shape) for p, state in states),
        trained_sha256=trainable_sha256(model),
    )


def trainable_sha256(model: torch.nn.Module) -> str:
    """A hash over names and shapes of all trainable parameters: equal models train the same tensors."""
    lines = sorted(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters() if p.requires_grad)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
