"""A module that a factory made, for methods to be tried on: as it is, or without its numbers if it is large.

Knows nothing of what is concluded from a try.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from ..optimizer.adapters import AdapterFactory
from ..optimizer.codec import to_json
from ..optimizer.domain import Adapter, Method, Quantization
from ..optimizer.exports.peft import adapter_config
from ..optimizer.methods import METHODS
from ..optimizer.targets import Targets, suffixes_for, target_pattern
from ..optimizer.verdicts import NOT_CALLED, READ_DIRECTLY, Attempt, Proof, Settled, Variant, Where
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
    adapted_by,
    first_words,
    idle_among,
    level_of,
    quiet,
    tried_candidate,
    without_gradient,
)

MOST_NUMBERS = 50_000_000
"""Modules of more parameters are tried without their numbers."""

EVERYWHERE = (
    frozenset({"linear", "conv1d", "attention", "attention-part"}),
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
        takes = METHODS[variant.method].tried_on - ({"attention"} if variant.use_dora else set())
        if "attention" in takes:  # its parts are adapted with it
            takes -= {"attention-part"}
        for kinds in EVERYWHERE:
            yield [name for name, each in self._modules.items() if each.kind in kinds & takes]

    def build_only(self, reason: str) -> None:
        self._inputs, self.why_no_step = None, f"the module itself fails in one ({reason})"

    def kind_of(self, entry: str) -> tuple[Any, ...]:
        kind = type(self._module.get_submodule(entry))
        return kind, self._modules[entry].groups > 1, self._is_in_attention(entry)

    def _is_in_attention(self, name: str) -> bool:
        """PyTorch's own attention reads this module's weight."""
        return isinstance(self._module.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)

    def attempt(self, variant: Variant, entries: Sequence[str]) -> Attempt:
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
                    base_model=self.profile.source,
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
        idle_entries = {
            entry: READ_DIRECTLY if self._is_in_attention(entry) else NOT_CALLED
            for entry in idle_among(entries, idle or set(), adapted_by(model))
        }
        return Attempt(idle=idle_entries, trainable_params=trained, proof=self._proof)

    def trainable(self, _: Variant, settled: Settled) -> int | None:
        return settled.attempt.trainable_params

    def warnings(self, _: Variant, settled: Settled) -> Sequence[str]:
        multiples = {
            module.groups
            for module in (self._modules[entry] for entry in settled.kept)
            if module.kind == "convolution" and module.groups > 1
        }
        many = ", ".join(map(str, sorted(multiples)))
        return (f"Ranks have to be multiples of a convolution's groups ({many}).",) if multiples else ()

    def where(self, kept: Sequence[str]) -> Where:
        found = suffixes_for(kept, self._names)
        return Where(pattern=target_pattern(kept)) if found is None else Where(modules=found)

    @property
    def _proof(self) -> Proof:
        return Proof.BUILD if self._inputs is None else Proof.STEP

    def _copy(self) -> nn.Module:
        numbers = (
            {id(tensor): emptied(tensor) for tensor in tensors_of(self._module)} if self._is_large else {}
        )
        return copy.deepcopy(self._module, numbers).train()

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
        """What got no gradient; None where no step can be taken."""
        if self._inputs is None:
            return None
        is_quantized = variant.quantization is not Quantization.NONE
        with fake_tensors() if self._is_large and is_quantized else nullcontext():
            if self._is_large and is_quantized:
                materialise(model)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_quantized), known_weights():
                loss = scalar_of(self._inputs.call(model))
            if loss is None:
                raise RuntimeError("no output depends on what is trained")
            loss.backward()
        return without_gradient(model)


def observe(module: nn.Module) -> tuple[Inputs | None, tuple[Call, ...]]:
    """Inputs that a module runs with, and which of its parts such a run calls."""
    with quiet():
        inputs = find_inputs(module)
        return inputs, () if inputs is None else watched(module, partial(inputs.call, module))
