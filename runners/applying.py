"""A recommended candidate applied to a module that the user has built: quantized, frozen, adapted.

What a trial does to the model that it builds, here done to one that is there. Knows nothing of studies.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
import transformers

from ..errors import InputError
from .build import InvalidTrial, add_adapter, freeze_rest, make_optimizer, trained_parts
from .modules import InvalidQuantization, avoid_fast_paths, listed, nearest_modules, quantize_linears


def apply_candidate(
    model: torch.nn.Module,
    candidate: Mapping[str, Any],
    adapter_config: Mapping[str, Any] | None,
    *,
    skip: Collection[str] = (),
) -> torch.nn.Module:
    """The model with what the candidate says of weights and adapter; changed in place, and wrapped by PEFT.

    Args:
        candidate: plain data, as in ``recommendation.json``.
        adapter_config: PEFT's, as plain data; None where there is no adapter.
        skip: names of modules that are not quantized.

    Raises:
        InputError: the candidate does not fit the model, or a package is missing.
    """
    _require_unadapted(model)
    is_plain = not isinstance(model, transformers.PreTrainedModel)
    _require_parts(model, trained_parts(candidate["adapter"]))
    if adapter_config is not None:
        _require_targets(model, adapter_config)
        if is_plain:  # PEFT's classes for tasks expect transformers' models
            adapter_config = {**adapter_config, "task_type": None}
    level, adapter = candidate["level"], candidate["adapter"]
    kept = (*trained_parts(adapter), *_output_embeddings(model), *skip)
    _quantize(model, level, skip=kept, adapter_config=adapter_config)
    if level["gradient_checkpointing"] and isinstance(model, transformers.PreTrainedModel):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    avoid_fast_paths(model)
    dtype = getattr(torch, level["adapter_dtype"])
    if adapter_config is not None:
        return _adapted(model, adapter_config, dtype)
    if adapter["method"] != "full":
        freeze_rest(model, trained_parts(adapter), dtype=dtype)
    return model


def optimizer_of(model: torch.nn.Module, candidate: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The candidate's optimizer with its learning rate, over what is trained of the model and nothing else.

    Raises:
        InputError: nothing is trained, or the optimizer needs a package or a device that is not there.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("nothing of the model is trained", next_step="apply the recommendation to it first")
    try:
        return make_optimizer(model, candidate)
    except (ImportError, InvalidTrial) as error:
        raise InputError(
            f"the optimizer {candidate['level']['optimizer']} cannot be had: {error}",
            next_step="install bitsandbytes, or use torch.optim.AdamW on the trainable parameters",
        ) from error


def _adapted(
    model: torch.nn.Module, adapter_config: Mapping[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            f"{adapter_config['peft_type']} needs the package peft, which is not installed",
            next_step="pip install peft",
        )
    try:
        with warnings.catch_warnings():
            # PEFT sees for itself which layers are transposed, and would rather have been told.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
            # A file that came with trained weights says that the adapter is not trained.
            return add_adapter(model, {**adapter_config, "inference_mode": False}, dtype=dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"PEFT cannot put {adapter_config['peft_type']} on this module: {reason:.300}",
            next_step="see rankwise inspect for what it can put where",
        ) from error


def _quantize(
    model: torch.nn.Module,
    level: Mapping[str, Any],
    *,
    skip: Collection[str],
    adapter_config: Mapping[str, Any] | None,
) -> None:
    """As the level says, unless the model comes quantized or the library is missing, which is said."""
    if level["quantization"] == "none" or getattr(model, "quantization_method", None) is not None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        warnings.warn(
            f"bitsandbytes is not installed: weights stay as they are, where {level['quantization']} was "
            "recommended, and take several times the memory",
            stacklevel=4,
        )
        return
    try:
        quantize_linears(model, level, skip=skip, adapter_config=adapter_config)
    except InvalidQuantization as error:
        raise InputError(f"the module cannot be quantized as recommended: {error}") from error


def _output_embeddings(model: torch.nn.Module) -> list[str]:
    """Left alone, as transformers does where it quantizes."""
    if not isinstance(model, transformers.PreTrainedModel):
        return []
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head and head is not None]


def _require_unadapted(model: torch.nn.Module) -> None:
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise InputError("the model has an adapter already", next_step="apply the recommendation to the base")


def _require_targets(model: torch.nn.Module, adapter_config: Mapping[str, Any]) -> None:
    """PEFT leaves out names that match nothing as long as one of them does."""
    names = [name for name, _ in model.named_modules() if name]
    targets = adapter_config.get("target_modules") or ()
    if isinstance(targets, str):
        is_found = targets == "all-linear" or any(re.fullmatch(targets, name) for name in names)
        lost = [] if is_found else [targets]
    else:
        lost = [each for each in targets if not any(f".{name}".endswith(f".{each}") for name in names)]
    _refuse_lost(lost, names)


def _require_parts(model: torch.nn.Module, parts: Collection[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    _refuse_lost([each for each in parts if not any(f".{each}." in f".{name}." for name in names)], names)


def _refuse_lost(lost: Collection[str], names: Collection[str]) -> None:
    if lost:
        raise InputError(
            f"the module has nothing called {listed(lost)}: the recommendation was made for another one",
            next_step=nearest_modules(next(iter(lost)), names),
        )
