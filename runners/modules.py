"""What modules other than transformers' models need beneath an adapter: no fast paths, quantized weights.

Imports nothing of rankwise: it is part of what the exported script is made of. Knows nothing of training. A
*level* is a plain mapping with the fields of ``Level``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

ADAPTERS_OF_QUANTIZED = ("LORA", "ADALORA", "IA3", "OFT", "MISS")
"""Types of PEFT's (0.21) that were seen to train on bitsandbytes' layers. Most others take such a layer for
the plain one that it is derived from, and fail on its packed numbers."""

OUTLIERS_FROM = 6.0
"""Columns of inputs that reach it are left out of 8-bit products: transformers' default."""


class InvalidQuantization(ValueError):
    """What was asked of the layers to be quantized cannot be had."""


def avoid_fast_paths(module: torch.nn.Module) -> list[str]:
    """Have torch's encoder layers run as they are written; returns their names.

    In evaluation ``nn.TransformerEncoderLayer`` (torch 2.13) hands the weights of its parts to one fused
    kernel and calls none of them: adapters on them are passed over without a word, quantized weights fail.
    """
    found = []
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # "neither", which is what the fused kernel cannot do
            found.append(name)
        elif isinstance(part, torch.nn.TransformerEncoder):
            part.use_nested_tensor = False  # which only the fused kernel takes
    return found


def quantize_linears(
    module: torch.nn.Module,
    level: Mapping[str, Any],
    *,
    skip: Collection[str] = (),
    only: Collection[str] = (),
    adapter_config: Mapping[str, Any] | None = None,
) -> list[str]:
    """Replace linear layers by bitsandbytes' ones of the level's quantization; returns their names.

    Left alone are layers that are no plain ``nn.Linear`` (the output projection of ``nn.MultiheadAttention``,
    whose weight is read past the layer) and those that share their weight with another module. A name stands
    for every module that it is, or is a part of at a dot: ``head`` for ``head.0`` and for ``decoder.head``.

    Args:
        level: of which ``quantization``, ``double_quantization`` and ``compute_dtype`` are read.
        skip: names of modules that keep their weights; those of parameters are taken, too.
        only: names of the modules to quantize; all if empty.
        adapter_config: PEFT's configuration, as plain data, of the adapter that is to be put on it.

    Raises:
        InvalidQuantization: bitsandbytes is missing, a name matches nothing or stands on both sides, nothing
            is left to quantize, or the adapter cannot sit on what would be quantized.
    """
    kind = level["quantization"]
    if kind == "none":
        return []
    plain = plain_linears(module)
    check_names(module, plain, skip=skip, only=only)
    chosen = [name for name in plain if (not only or is_named(name, only)) and not is_named(name, skip)]
    if not chosen:
        raise InvalidQuantization(
            f"{kind} leaves nothing to quantize: of {len(plain)} plain linear layers all are skipped "
            f"({', '.join(skip)}); skip less, or leave the quantization out"
        )
    if adapter_config is not None:
        check_quantized_targets(chosen, adapter_config, kind)
    layer = quantized_layer_maker(level)
    for name in chosen:
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer(plain[name]))
    avoid_fast_paths(module)
    return chosen


def plain_linears(module: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Linear layers that are used by being called, by name; of one with several names the first."""
    owners: dict[int, set[int]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(part))
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) is torch.nn.Linear and name and len(owners[id(part.weight)]) == 1
    }


def quantized_layer_maker(level: Mapping[str, Any]) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    """From a linear layer to the quantized one, on the same device."""
    try:
        import bitsandbytes  # initialises CUDA, which the process that trials are forked from must not
    except ImportError:
        raise InvalidQuantization(
            f"{level['quantization']} needs the package bitsandbytes, which is not installed: "
            "install it, or leave the quantization out"
        ) from None
    nn = bitsandbytes.nn
    is_8bit = level["quantization"] == "int8"

    def make(linear: torch.nn.Linear) -> torch.nn.Module:
        shape = {"input_features": linear.in_features, "output_features": linear.out_features}
        shared: dict[str, Any] = {**shape, "bias": linear.bias is not None, "device": "meta"}
        weight = linear.weight.detach()
        made: Any
        if is_8bit:
            made = nn.Linear8bitLt(**shared, has_fp16_weights=False, threshold=OUTLIERS_FROM)
            made.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            dtype = getattr(torch, level["compute_dtype"])
            settings = {
                "quant_type": level["quantization"],
                "compress_statistics": level["double_quantization"],
            }
            made = nn.Linear4bit(**shared, compute_dtype=dtype, **settings)
            made.weight = nn.Params4bit(weight, requires_grad=False, module=made, **settings)
            # As in weights.py's keep_settings: neither another dtype nor packing in evaluation.
            made.compute_type_is_set, made.support_avx512bf16_for_cpu = True, False
        made.bias = linear.bias
        made.train(linear.training)
        # Numbers are quantized on their way to a device; a tensor without numbers stays as it is.
        return made if weight.is_meta else made.to(weight.device)

    return make


def check_names(
    module: torch.nn.Module,
    plain: Collection[str],
    *,
    skip: Collection[str],
    only: Collection[str],
) -> None:
    names = [name for name, _ in module.named_modules() if name]
    parameters = [name for name, _ in module.named_parameters()]  # such as all that are called bias
    for given, what in ((skip, "to skip"), (only, "to quantize")):
        for each in given:
            if not any(is_named(name, (each,)) for name in (*names, *parameters)):
                raise InvalidQuantization(
                    f"no module is called {each!r}, which is {what}: {nearest_modules(each, names)}"
                )
    for each in only:
        if not any(is_named(name, (each,)) for name in plain):
            raise InvalidQuantization(
                f"{each!r} is to be quantized, and is or holds no plain linear layer; there are: "
                f"{listed(plain)}"
            )
    both = [name for name in plain if is_named(name, skip) and is_named(name, only)]
    if both:
        raise InvalidQuantization(
            f"{listed(both)}: to be quantized and to be skipped at once; name it on one side only"
        )


def check_quantized_targets(quantized: Iterable[str], config: Mapping[str, Any], kind: str) -> None:
    peft_type = str(config["peft_type"]).rpartition(".")[2].upper()
    targets = config.get("target_modules") or ()
    if peft_type in ADAPTERS_OF_QUANTIZED or isinstance(targets, str):
        return
    hit = [
        name for name in quantized if name.endswith(tuple(f".{each}" for each in targets)) or name in targets
    ]
    if hit:
        raise InvalidQuantization(
            f"PEFT cannot put {peft_type} on {listed(hit)} once quantized to {kind}: skip these, or take "
            f"one of {', '.join(ADAPTERS_OF_QUANTIZED)}"
        )


def is_named(name: str, given: Collection[str]) -> bool:
    return any(f".{each}." in f".{name}." for each in given)


def nearest_modules(wanted: str, names: Collection[str]) -> str:
    ends = sorted({name.rpartition(".")[2] for name in names} | set(names))
    near = difflib.get_close_matches(wanted, ends, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {listed(ends)}"


def listed(names: Iterable[str], most: int = 8) -> str:
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
