"""Small random inputs that a model can be called with, and its answer. Knows nothing of training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

ROWS, TOKENS = 2, 12


def random_inputs(model: Any) -> dict[str, torch.Tensor] | None:
    """Two rows by the names of ``forward``'s arguments; equal each time. None: nobody knows what it takes.

    A module may tell by its attribute ``example_inputs``; of transformers' models the configuration does.
    """
    told = getattr(model, "example_inputs", None)
    if isinstance(told, Mapping):
        return dict(told)
    config, arguments = getattr(model, "config", None), inspect.signature(model.forward).parameters
    if config is None:
        return None
    generator = torch.Generator().manual_seed(0)
    if "input_ids" in arguments and hasattr(config.get_text_config(), "vocab_size"):
        size = config.get_text_config().vocab_size
        ids = torch.randint(0, size, (ROWS, TOKENS), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return inputs | ({"decoder_input_ids": ids.flip(1)} if "decoder_input_ids" in arguments else {})
    shape = _shape(config, arguments)
    if shape is None:
        return None
    name, sizes = shape
    return {name: torch.randn(ROWS, *sizes, generator=generator)}


def _shape(config: Any, arguments: Mapping[str, Any]) -> tuple[str, tuple[int, ...]] | None:
    if "pixel_values" in arguments and hasattr(config, "image_size"):
        side = config.image_size
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return "pixel_values", (getattr(config, "num_channels", 3), height, width)
    if "past_values" in arguments and hasattr(config, "context_length"):
        return "past_values", (config.context_length, getattr(config, "num_input_channels", 1))
    return None


def outputs_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Numbers of the answer in evaluation, as float32."""
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    given = {
        name: tensor.to(floating) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
    }
    with torch.no_grad():
        return [tensor.float() for tensor in _tensors(model(**given)) if tensor.is_floating_point()]


def _tensors(answer: Any) -> Iterator[torch.Tensor]:
    """In nested mappings and sequences; what is neither is passed over, as caches of keys and values are."""
    if isinstance(answer, torch.Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        for part in answer.values():
            yield from _tensors(part)
    elif isinstance(answer, list | tuple):
        for part in answer:
            yield from _tensors(part)
