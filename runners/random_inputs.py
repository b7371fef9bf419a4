"""Small random inputs that a model can be called with, and its answer. Knows nothing of training."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from .example_inputs import ROWS, Inputs, find_inputs

TOKENS = 12


def random_inputs(model: Any) -> Inputs | None:
    """Two rows that are equal each time; None: nobody knows what the model is called with.

    Of tokens each is another one, where :func:`.find_inputs` has the same throughout.
    """
    config: Any = getattr(model, "config", None)
    arguments = inspect.signature(model.forward).parameters
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if "input_ids" not in arguments or not hasattr(config, "get_text_config"):
            return find_inputs(copy.deepcopy(model))  # which changes what batch norms remember
        ids = torch.randint(0, config.get_text_config().vocab_size, (ROWS, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "decoder_input_ids" in arguments:
        inputs["decoder_input_ids"] = ids.flip(1)
    return Inputs(by_name=inputs, origin="its vocabulary")


def outputs_of(model: Any, inputs: Inputs) -> list[torch.Tensor]:
    """Numbers of the answer in evaluation, as float32."""
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def fitted(value: Any) -> Any:
        is_number = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(floating) if is_number else value

    place, name = tree_map(fitted, (inputs.by_place, dict(inputs.by_name or {})))
    with torch.no_grad():
        answer = replace(inputs, by_place=place, by_name=name).call(model.eval())
    return [tensor.float() for tensor in _tensors(answer) if tensor.is_floating_point()]


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
