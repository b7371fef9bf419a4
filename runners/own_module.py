"""A module that a factory made, for methods to be tried on: as it is, or without its numbers if it is large.

Knows nothing of what is concluded from a try.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from ..optimizer.adapters import AdapterFactory
from ..optimizer.codec import to_json
from ..optimizer.domain import Adapter, Method, Quantization
from ..optimizer.exports.peft import adapter_config
from ..optimizer.methods import METHODS
from ..optimizer.targets import Targets, suffixes_for, target_pattern
from ..optimizer.verdicts import (
    NOT_REACHED,
    READ_DIRECTLY,
    Attempt,
    Proof,
    Settled,
    Variant,
    Where,
    listed,
)
from ..probes.profiles import ModelProfile
from ..probes.structure import Call, watched
from .build import add_adapter, freeze_rest
from .dry_runner import TOTAL_STEPS
from .example_inputs import Inputs, find_inputs, scalar_of
from .fakes import fake_tensors, known_weights, materialise
from .modules import quantize_linears
from .plain_module import emptied, tensors_of
from .trying import (
    RANK,
    first_words,
    level_of,
    quiet,
    tried_candidate,
    without_gradient,
)

MOST_NUMBERS = 50_000_000
"""Modules of more parameters are tried without their numbers."""

ROWS_OF_PASSES = (1, 1, 4, 16, 1, 1)
"""A step takes more passes while some adapter got no gradient, with so many times the rows."""

EVERYWHERE = (
    frozenset({"linear", "conv1d", "attention"}),
    frozenset({"convolution"}),
    frozenset({"embedding"}),
)
"""Kinds of modules in the order in which an adapter is put on them: it sits on the first that work."""


class OwnModule:
    """A module that a factory made, as it is; without its numbers if it is large."""

    def __init__(self, module: nn.Module, profile: ModelProfile, inputs: Inputs | None) -> None:
        """Keep the module; copies of it are tried.

        Args:
            inputs: what it runs with; None builds only.
        """
        self.profile = profile
        self._module, self._inputs = module, inputs
        self._factory = AdapterFactory(Targets(profile, None), 0.0)
        self.why_no_step = "the model's inputs are not known"
        self._is_large = profile.parameters > MOST_NUMBERS
        self._modules = {each.name: each for each in profile.modules}
        self._names = [name for name, _ in module.named_modules()]

    def tiers(self, variant: Variant) -> Iterator[Sequence[str]]:
        takes = self._kinds(variant)
        for kinds in EVERYWHERE:
            yield [name for name, each in self._modules.items() if each.kind in kinds & takes]

    def _kinds(self, variant: Variant) -> frozenset[str]:
        return METHODS[variant.method].tried_on - (
            frozenset({"attention"}) if variant.use_dora else frozenset()
        )

    def known(self, variant: Variant) -> Mapping[str, str]:
        if "attention" in self._kinds(variant):  # its parts are adapted with it
            return {}
        parts = (name for name, each in self._modules.items() if each.kind == "attention-part")
        return dict.fromkeys(parts, READ_DIRECTLY)

    def build_only(self, reason: str) -> None:
        self._inputs, self.why_no_step = None, f"the module itself fails in one ({reason})"

    def kind_of(self, entry: str) -> tuple[Any, ...]:
        return type(self._module.get_submodule(entry)), self._modules[entry].groups > 1

    def attempt(self, variant: Variant, entries: Sequence[str]) -> Attempt:
        if getattr(self._module.forward, "__func__", None) is nn.Module.forward:
            return Attempt(error="it has no forward pass of its own")
        try:
            model = self._copy()
            quantize_linears(model, to_json(level_of(variant)))
            adapter = self.adapter(variant, entries)
            assert adapter is not None  # noqa: S101 - there are entries, or the method needs none
            if variant.method.unfreezes:
                freeze_rest(model, adapter.trained_parts, dtype=torch.float32)
            elif variant.method.has_adapter:
                config = adapter_config(
                    tried_candidate(adapter, level_of(variant)),
                    task_kind=None,
                    base_model=self.profile.base,
                    total_steps=TOTAL_STEPS,
                )
                assert config is not None  # noqa: S101 - it has an adapter
                model = add_adapter(model, config, dtype=torch.float32)
            idle = self._step(model, variant)
        except Exception as error:  # noqa: BLE001 - libraries and the user's code raise what they like
            return Attempt(error=first_words(error))
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        if not variant.method.has_adapter:
            unused = dict.fromkeys(sorted(idle or ()), "takes no part in a step")
            return Attempt(idle=unused, trainable_params=trained, proof=self._proof)
        idle_entries = dict.fromkeys((entry for entry in entries if entry in (idle or ())), NOT_REACHED)
        return Attempt(idle=idle_entries, trainable_params=trained, proof=self._proof)

    def trainable(self, _: Variant, settled: Settled) -> int | None:
        return settled.attempt.trainable_params

    def warnings(self, variant: Variant, settled: Settled) -> Sequence[str]:
        chosen = [self._modules[entry] for entry in settled.kept]
        found = []
        if many := sorted({each.groups for each in chosen if each.kind == "convolution" and each.groups > 1}):
            text = ", ".join(map(str, many))
            found.append(f"Ranks have to be multiples of a convolution's groups ({text}).")
        narrow = min((each.in_features for each in chosen), default=RANK)
        if variant.method is Method.MISS and narrow < RANK:
            found.append(f"MiSS takes no rank above the input of a module: here {narrow}.")
        if shared := self._shared_weights(settled.kept):
            found.append(f"{listed(shared)}: the weight is shared, and merging an adapter changes both.")
        return found

    def _shared_weights(self, names: Sequence[str]) -> list[str]:
        """Those whose weight another module has too."""
        owners = Counter(
            id(each) for part in self._module.modules() for each in part.parameters(recurse=False)
        )
        parts = ((name, self._module.get_submodule(name)) for name in names)
        return [
            name
            for name, part in parts
            if any(owners[id(each)] > 1 for each in part.parameters(recurse=False))
        ]

    def where(self, kept: Sequence[str]) -> Where:
        found = suffixes_for(kept, self._names)
        return Where(pattern=target_pattern(kept)) if found is None else Where(modules=found)

    @property
    def _proof(self) -> Proof:
        return Proof.BUILD if self._inputs is None else Proof.STEP

    def _copy(self) -> nn.Module:
        """A copy, in training mode. What it holds besides may be impossible to copy, and is then shared."""
        numbers: dict[int, Any] = (
            {id(tensor): emptied(tensor) for tensor in tensors_of(self._module)} if self._is_large else {}
        )
        for part in self._module.modules():
            for tensor in tree_iter([value for name, value in vars(part).items() if name not in _HELD]):
                if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                    numbers[id(tensor)] = tensor.detach().clone()
        try:
            return copy.deepcopy(self._module, dict(numbers)).train()
        except (RuntimeError, TypeError):
            return copy.deepcopy(self._module, {**numbers, **_uncopiable(self._module)}).train()

    def adapter(self, variant: Variant, entries: Sequence[str]) -> Adapter | None:
        match variant.method:
            case Method.FULL:
                return Adapter(method=Method.FULL)
            case Method.LAST_BLOCKS:
                return self._factory.last_blocks(1)
            case Method.HEAD | Method.BITFIT | Method.NORMS:
                return self._factory.partial(variant.method)
        chosen = [self._modules[entry] for entry in entries]
        # A rank has to be a multiple of a convolution's groups, and MiSS and OFT take none above the input.
        rank = math.lcm(RANK, *(each.groups for each in chosen if each.kind == "convolution"))
        if variant.method in (Method.MISS, Method.OFT):
            rank = min(rank, *(each.in_features for each in chosen))
        where = self.where(entries)
        is_adalora = variant.method is Method.ADALORA
        return Adapter(
            method=variant.method,
            rank=None if variant.method is Method.IA3 else rank,
            initial_rank=rank + rank // 2 if is_adalora else None,
            alpha=2.0 * rank,
            targets=where.modules,
            target_pattern=where.pattern,
            use_rslora=variant.use_rslora,
            use_dora=variant.use_dora,
        )

    def _step(self, model: nn.Module, variant: Variant) -> set[str] | None:
        """What got no gradient; None where no step can be taken.

        A pass may leave layers out by chance, or by what it reads: gradients of several add up.
        """
        if self._inputs is None:
            return None
        is_quantized = variant.quantization is not Quantization.NONE
        idle: set[str] = set()
        torch.manual_seed(0)
        with fake_tensors() if self._is_large and is_quantized else nullcontext():
            if self._is_large and is_quantized:
                materialise(model)
            for number, times in enumerate(ROWS_OF_PASSES):
                inputs = self._inputs.drawn_anew(times) if number else self._inputs
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_quantized), known_weights():
                    loss = _loss_of(inputs, model, is_first=number == 0)
                if loss is not None:
                    loss.backward()
                idle = without_gradient(model)
                if not idle:
                    return idle
        if all(each.grad is None for each in model.parameters() if each.requires_grad):
            raise RuntimeError("no gradient reaches what would be trained")
        return idle


def _loss_of(inputs: Inputs, model: nn.Module, *, is_first: bool) -> torch.Tensor | None:
    """Of one pass; later ones may not fit, as where the number of rows is fixed."""
    try:
        return scalar_of(inputs.call(model))
    except Exception:
        if is_first:
            raise
        return None


_HELD = ("_parameters", "_buffers", "_modules")


def _uncopiable(module: nn.Module) -> dict[int, Any]:
    """Values that a module and its parts hold and that cannot be copied, by id: for copies to share."""
    shared = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if name in _HELD or isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value)
            except Exception:  # noqa: BLE001 - whatever the user's objects raise
                shared[id(value)] = value
    return shared


def observe(module: nn.Module) -> tuple[Inputs | None, tuple[Call, ...]]:
    """Inputs that a module runs with, and which of its parts such a run calls."""
    with quiet():
        inputs = find_inputs(module)
        return inputs, () if inputs is None else watched(module, partial(inputs.call, module))
