"""A model of transformers, for methods to be tried on: without numbers, on few layers where these are alike.

Knows nothing of what is concluded from a try.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..optimizer.adapters import AdapterFactory, warnings_for
from ..optimizer.codec import to_json
from ..optimizer.domain import Adapter, Candidate, Method, Quantization
from ..optimizer.exports.peft import adapter_config
from ..optimizer.rules import preferred_attention
from ..optimizer.sizes import trainable_parameters
from ..optimizer.targets import Targets
from ..optimizer.verdicts import NOT_REACHED, Attempt, Proof, Settled, Variant, Where
from ..probes.profiles import ModelProfile, ModuleProfile, TaskProfile
from .build import build_model
from .dry_run import Batch, arrays_for, make_inputs
from .dry_runner import CANNOT_RUN, TOTAL_STEPS
from .fakes import fake_tensors, known_masks, known_weights, materialise, on_meta
from .forward import batch_loss, run_model
from .shallow import begins_like_the_rest, cut_configuration, stacks_of
from .trying import (
    RANK,
    adapted_by,
    first_words,
    idle_among,
    is_quantized,
    level_of,
    tried_candidate,
    without_gradient,
)

TRIED_LAYERS = (1, 2, 4, 8)
"""Of a stack: the fewest among which there is every kind of layer."""

DEEPEST_STEP = 16
"""Where more layers than this are not known to be alike, steps are left out: building tells nearly all."""

ANY_IMAGE = (3, 64, 64)
"""Networks of convolutions take images of any size, and say none."""

_LAST = re.compile(r"\.\d+$")

NOTHING_QUANTIZED = "transformers replaces none of its layers by quantized ones"


class TransformersModel:
    """A model of transformers, without numbers, on few of its layers where these are alike."""

    def __init__(
        self, profile: ModelProfile, task: TaskProfile, folder: Path, *, allow_remote_code: bool = False
    ) -> None:
        """Read the configuration; nothing is built yet.

        Args:
            folder: where a configuration of few layers may be written.
        """
        self.profile = profile
        self._task, self._allowed = task, allow_remote_code
        self._factory = AdapterFactory(Targets(profile, task.kind), 0.0)
        self._path = Path(profile.path)
        self._can_step = True
        self.why_no_step = "its layers are many, and not alike"
        stacks = stacks_of(profile)
        least = 1 if begins_like_the_rest(profile) else 2
        depths = [each for each in TRIED_LAYERS if least <= each < min(stacks.values(), default=0)]
        tried = folder / "tried"
        self._layers = next(
            (each for each in depths if cut_configuration(self._path, stacks, tried, layers=each)), None
        )
        if self._layers is not None:
            self._path = tried
        elif (profile.layers or 0) > DEEPEST_STEP:
            self._can_step = False

    def tiers(self, variant: Variant) -> Iterator[Sequence[str]]:
        adapter = self._adapter(variant)
        if adapter is not None:
            yield (*adapter.targets, *adapter.target_parameters)

    def known(self, _: Variant) -> Mapping[str, str]:
        return {}

    def build_only(self, reason: str) -> None:
        self._can_step, self.why_no_step = False, f"the model itself fails in one ({reason})"

    def kind_of(self, entry: str) -> tuple[Any, ...]:
        return (any(f".{module.name}".endswith(f".{entry}") for module in self._experts),)

    def attempt(self, variant: Variant, entries: Sequence[str]) -> Attempt:
        candidate = self._candidate(variant, entries)
        try:
            model = self._built(candidate)
            if variant.quantization is not Quantization.NONE and not is_quantized(model):
                return Attempt(error=NOTHING_QUANTIZED)
            idle = self._step(model, candidate) if self._can_step else set()
        except Exception as error:  # noqa: BLE001 - libraries and models' own code raise what they like
            return Attempt(error=first_words(error))
        proof = Proof.STEP if self._can_step else Proof.BUILD
        unused = idle_among(entries, idle, adapted_by(model))
        return Attempt(idle=dict.fromkeys(unused, NOT_REACHED), proof=proof)

    def trainable(self, variant: Variant, settled: Settled) -> int | None:
        return trainable_parameters(self._candidate(variant, settled.kept).adapter, self.profile)

    def warnings(self, variant: Variant, settled: Settled) -> Sequence[str]:
        return warnings_for(self._candidate(variant, settled.kept), self.profile)

    def where(self, kept: Sequence[str]) -> Where:
        experts = tuple(entry for entry in kept if self.kind_of(entry)[0])
        return Where(modules=tuple(entry for entry in kept if entry not in experts), parameters=experts)

    @cached_property
    def _experts(self) -> list[ModuleProfile]:
        return [module for module in self.profile.modules if module.kind == "experts"]

    def _adapter(self, variant: Variant) -> Adapter | None:
        """On all linear layers, at the rank that is tried."""
        make = self._factory
        match variant.method:
            case Method.LORA:
                return make.lora(RANK, "full", use_rslora=variant.use_rslora, use_dora=variant.use_dora)
            case Method.ADALORA:
                return make.adalora(RANK, "full")
            case Method.IA3:
                return make.ia3("full")
            case Method.LAST_BLOCKS:
                return make.last_blocks(1)
            case Method.HEAD | Method.BITFIT | Method.NORMS:
                return make.partial(variant.method)
            case Method.FULL:
                return Adapter(method=Method.FULL)
        return make.ranked(variant.method, RANK, "full")

    def _candidate(self, variant: Variant, entries: Collection[str]) -> Candidate:
        adapter = self.adapter(variant, entries)
        assert adapter is not None  # noqa: S101 - there are entries, or the method needs none
        if self._layers is not None and variant.method is Method.LAST_BLOCKS:
            last = f".{self._layers - 1}"
            adapter = replace(adapter, unfrozen=tuple(_LAST.sub(last, each) for each in adapter.unfrozen))
        return tried_candidate(adapter, level_of(variant, attention=preferred_attention(self.profile)))

    def adapter(self, variant: Variant, entries: Collection[str]) -> Adapter | None:
        adapter = self._adapter(variant)
        if adapter is None or not variant.method.has_adapter:
            return adapter
        return replace(
            adapter,
            targets=tuple(entry for entry in adapter.targets if entry in entries),
            target_parameters=tuple(entry for entry in adapter.target_parameters if entry in entries),
            feedforward=tuple(entry for entry in adapter.feedforward if entry in entries),
        )

    def _built(self, candidate: Candidate) -> nn.Module:
        plain = to_json(candidate)
        with on_meta(plain["level"]):
            return build_model(
                str(self._path),
                task=to_json(self._task),
                candidate=plain,
                adapter_config=adapter_config(
                    candidate,
                    task_kind=self._task.kind,
                    base_model=self.profile.base,
                    total_steps=TOTAL_STEPS,
                ),
                pad_id=0,
                seed=0,
                device=torch.device("meta"),
                has_weights=False,
                trust_remote_code=self._allowed,
            )

    def _step(self, model: nn.Module, candidate: Candidate) -> set[str]:
        """On the meta device, which is fastest; as fakes where that fails or bitsandbytes has to run.

        Returns what got no gradient.
        """
        quantized = candidate.level.quantization is not Quantization.NONE
        batch = Batch(rows=1, length=8, target_length=8 if self.profile.is_encoder_decoder else None)
        profile = self.profile
        if self._task.kind.reads_images and profile.image_shape is None:
            profile = replace(profile, image_shape=ANY_IMAGE)
        batch = replace(batch, arrays=arrays_for(profile))

        def step(mode: AbstractContextManager[Any]) -> None:
            with mode, known_masks(padded=False, packed=False), known_weights():
                inputs = make_inputs(model, batch, has_labels_per_row=self._task.kind.has_new_head)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=quantized):
                    loss = batch_loss(run_model(model, inputs), inputs)
                loss.backward()

        if not quantized:
            try:
                step(torch.device("meta"))
            except CANNOT_RUN:  # some kernels are described for other dtypes there, or not at all
                model.zero_grad()
            else:
                return without_gradient(model)
        fakes = fake_tensors()
        with fakes:
            materialise(model)
        step(fakes)
        return without_gradient(model)
