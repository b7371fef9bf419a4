"""Inputs that a module takes: those that it offers, else some that its layers suggest, tried until it runs.

Knows nothing of adapters or of what the numbers mean.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_iter, tree_map

from ..probes.model import forward_arguments
from ..probes.structure import watched
from .forward import TARGET_ARGUMENTS, own_loss

ROWS = 2
OFFERED = ("example_inputs", "example_input_array", "dummy_inputs")
"""Attributes that hold inputs: ours, Lightning's, and transformers'."""

LENGTHS = (16, 32, 64, 96, 128, 256, 512, 1000, 1024)
SIDES = (32, 28, 64, 16, 96, 128, 224, 256, 8, 12, 20, 24, 48)
CHANNELS = 7
"""An odd number, so that what is no channel is not taken for one."""

MOST_MIXED = 3
"""Arguments of different kinds that are guessed …"""
MOST_TENSORS = 6
"""… from so many tensors."""

LONGEST_TRYING_S = 5.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a module is called with."""

    by_place: tuple[Any, ...] = ()
    by_name: Mapping[str, Any] | None = None
    origin: str = ""
    """Where they are from, for people."""

    def drawn_anew(self, times: int) -> Inputs:
        """So many times the rows, with other numbers; what is no fraction is repeated."""

        def drawn(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                return value
            rows = value.repeat(times, *(1 for _ in value.shape[1:]))
            return torch.randn_like(rows) if rows.is_floating_point() else rows

        places, names = tree_map(drawn, (self.by_place, dict(self.by_name or {})))
        return replace(self, by_place=places, by_name=names)

    def call(self, module: nn.Module) -> Any:
        """Run the module, with inputs that are where its parameters are (without numbers if these have none),
        and of their dtype."""
        like = next((each for each in module.parameters() if each.is_floating_point()), torch.empty(0))

        def fitted(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)

        places, names = tree_map(fitted, (self.by_place, dict(self.by_name or {})))
        return module(*places, **names)


def find_inputs(module: nn.Module) -> Inputs | None:
    """Inputs that the module runs with and gives numbers for that a gradient can come from, two rows of them.

    None where there are none to be found in a few seconds. The module is left as it was, but for statistics
    of its batches.
    """
    started_s = time.monotonic()
    for inputs in _offered(module):
        if _works(module, inputs):
            return inputs
    for inputs in _suggested(module):
        if _works(module, inputs):
            return _completed(module, inputs)
        if time.monotonic() - started_s > LONGEST_TRYING_S:
            return None
    return None


def scalar_of(output: Any) -> torch.Tensor | None:
    """A number to minimise: what the output calls its loss, else the mean square of all that is in it.

    None where nothing in it depends on a parameter.
    """
    loss = own_loss(output)
    if loss is not None and loss.requires_grad:
        return loss
    parts = [
        part.float().square().mean()
        for part in tree_iter(dict(output) if isinstance(output, Mapping) else output)
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.requires_grad
    ]
    return torch.stack(parts).sum() if parts else None


def _completed(module: nn.Module, inputs: Inputs) -> Inputs:
    """With arguments that may be left out, where giving them lets more of the module run."""
    best, reached = inputs, _reached(module, inputs)
    first = next(iter((*inputs.by_place, *(inputs.by_name or {}).values())))
    for each in inspect.signature(module.forward).parameters.values():
        if (
            each.default is not None or each.name in TARGET_ARGUMENTS
        ):  # what is to be predicted is not guessed
            continue
        more = replace(best, by_name={**(best.by_name or {}), each.name: first})
        if _works(module, more) and _reached(module, more) > reached:
            best, reached = more, _reached(module, more)
    return best


def _reached(module: nn.Module, inputs: Inputs) -> int:
    """How many parts of the module run with these."""
    return len({call.name for call in watched(module, partial(inputs.call, module))})


def _works(module: nn.Module, inputs: Inputs) -> bool:
    """The module runs in training with them. Whatever its code raises, they are not for it."""
    try:
        return scalar_of(inputs.call(module)) is not None
    except Exception:  # noqa: BLE001 - the user's code may raise anything
        return False


def _offered(module: nn.Module) -> Iterator[Inputs]:
    for name in OFFERED:
        given = getattr(module, name, None)
        if isinstance(given, Mapping) and given:
            yield Inputs(by_name=dict(given), origin=name)
        elif isinstance(given, torch.Tensor):
            yield Inputs((given,), origin=name)
        elif isinstance(given, tuple | list) and given:
            yield Inputs(tuple(given), origin=name)
    yield from _by_configuration(module)


def _by_configuration(module: nn.Module) -> Iterator[Inputs]:
    """What transformers' models of series and images say of their inputs."""
    config: Any = getattr(module, "config", None)
    names = forward_arguments(module)
    channels = getattr(config, "num_input_channels", None) or 1
    if "past_values" in names and (context := getattr(config, "context_length", None)):
        inputs = {"past_values": torch.randn(ROWS, context, channels)}
        if "future_values" in names and (horizon := getattr(config, "prediction_length", None)):
            inputs["future_values"] = torch.randn(ROWS, horizon, channels)
        yield Inputs(by_name=inputs, origin="its configuration")
    if "pixel_values" in names and (side := getattr(config, "image_size", None)):
        height, width = (side, side) if isinstance(side, int) else side
        depth = getattr(config, "num_channels", 3)
        yield Inputs(
            by_name={"pixel_values": torch.randn(ROWS, depth, height, width)}, origin="its configuration"
        )
    if "input_values" in names:
        yield Inputs(by_name={"input_values": torch.randn(ROWS, 8000)}, origin="its arguments")
    if "input_features" in names and (bins := getattr(config, "num_mel_bins", None)):
        frames = 2 * getattr(config, "max_source_positions", 1500)
        inputs = {"input_features": torch.randn(ROWS, bins, frames)}
        if "decoder_input_ids" in names:
            inputs["decoder_input_ids"] = torch.ones((ROWS, 8), dtype=torch.long)
        yield Inputs(by_name=inputs, origin="its configuration")
    if "input_ids" in names:
        ids = torch.ones((ROWS, 8), dtype=torch.long)
        yield Inputs(by_name={"input_ids": ids}, origin="its arguments")
        if "labels" in names:
            yield Inputs(by_name={"input_ids": ids, "labels": ids}, origin="its arguments")


def _suggested(module: nn.Module) -> Iterator[Inputs]:
    """Tensors that layers would take, the first ones' first: the same for each argument, then mixed."""
    places, names = _needed(module)
    first: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in _tensors(module):
        first.setdefault((tensor.dtype, tensor.dim()), tensor)
        for count in dict.fromkeys((places, max(places, 1 - len(names)))):
            named = dict.fromkeys(names, tensor)
            yield Inputs((tensor,) * count, named, origin=f"layers: {_shape(tensor)}")
    if 2 <= places + len(names) <= MOST_MIXED:
        tensors = [*itertools.islice(_tensors(module), MOST_TENSORS), *first.values()]
        for chosen in itertools.product(tensors, repeat=places + len(names)):
            named = dict(zip(names, chosen[places:], strict=True))
            yield Inputs(chosen[:places], named, origin=f"layers: {', '.join(map(_shape, chosen))}")


def _needed(module: nn.Module) -> tuple[int, list[str]]:
    """Arguments without a default: how many by place, and which by name only."""
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        each for each in inspect.signature(module.forward).parameters.values() if each.default is each.empty
    ]
    names = [each.name for each in needed if each.kind is inspect.Parameter.KEYWORD_ONLY]
    return sum(each.kind in by_place for each in needed), names


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    layers = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    widths = tuple(dict.fromkeys(each.in_features for each in layers if isinstance(each, nn.Linear)))[:8]
    seen: set[tuple[Any, ...]] = set()
    for make in (_exact, _wide):
        for layer in layers:
            for shape in make(layer, widths):
                key = (isinstance(layer, nn.Embedding), *shape)
                if key not in seen and 0 not in shape:
                    seen.add(key)
                    is_index = isinstance(layer, nn.Embedding)
                    yield torch.ones(shape, dtype=torch.long) if is_index else torch.randn(shape)


def _exact(layer: nn.Module, _: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Shapes that fit this layer, few of them."""
    match layer:
        case nn.Embedding() | nn.EmbeddingBag():
            yield ROWS, 8
        case nn.Conv1d() | nn.ConvTranspose1d():
            yield from ((ROWS, layer.in_channels, length) for length in LENGTHS)
            yield ROWS, 64, layer.in_channels
        case nn.Conv2d() | nn.ConvTranspose2d():
            yield from ((ROWS, layer.in_channels, side, side) for side in SIDES)
        case nn.Conv3d() | nn.ConvTranspose3d():
            yield from ((ROWS, layer.in_channels, side, side, side) for side in (16, 8, 32))
        case nn.Linear():
            yield ROWS, layer.in_features
            yield ROWS, CHANNELS, layer.in_features
        case nn.RNNBase():
            yield ROWS, 9, layer.input_size
        case nn.RNNCellBase():
            yield ROWS, layer.input_size
        case nn.MultiheadAttention():
            yield ROWS, 9, layer.embed_dim
        case nn.LayerNorm() | nn.RMSNorm():
            yield ROWS, *layer.normalized_shape
            yield ROWS, 9, *layer.normalized_shape
        case nn.BatchNorm1d() | nn.InstanceNorm1d():
            yield ROWS, layer.num_features
            yield ROWS, layer.num_features, 32
        case nn.BatchNorm2d() | nn.InstanceNorm2d():
            yield ROWS, layer.num_features, 32, 32
        case nn.GroupNorm():
            yield ROWS, layer.num_channels, 32
            yield ROWS, layer.num_channels, 32, 32


def _wide(layer: nn.Module, widths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Shapes of two or three axes out of the widths that any layers have, and of odd images."""
    if isinstance(layer, nn.Linear):
        for size in widths:
            yield ROWS, layer.in_features, size
            yield ROWS, size, layer.in_features
        yield ROWS, layer.in_features, CHANNELS
        yield ROWS, layer.in_features, 1
        yield ROWS, 3, 8, layer.in_features
    if isinstance(layer, nn.Conv2d):
        for size in (*widths, *LENGTHS):
            yield ROWS, layer.in_channels, layer.kernel_size[0], size
            yield ROWS, layer.in_channels, size, layer.kernel_size[1]
            yield ROWS, layer.in_channels, 22, size
            yield ROWS, 22, size


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))
