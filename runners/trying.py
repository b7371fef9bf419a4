"""What every try of a method on a model needs: a candidate of little account, and who got a gradient.

Knows nothing of how models are built.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers.utils import logging as transformers_logging

from ..optimizer.domain import Adapter, Candidate, Level, Quantization, Recipe
from ..optimizer.verdicts import Variant

RANK = 8


def tried_candidate(adapter: Adapter, level: Level) -> Candidate:
    """A candidate of which only adapter and level count."""
    return Candidate(
        adapter=adapter, level=level, recipe=Recipe(max_length=8), micro_batch=1, learning_rate=1.0
    )


def level_of(variant: Variant, *, attention: str = "sdpa") -> Level:
    """As studies have it: 4-bit weights compute in bfloat16."""
    if variant.quantization is Quantization.NONE:
        return Level(attention=attention)
    if variant.quantization.is_4bit:
        return Level(
            quantization=variant.quantization,
            weight_dtype="bfloat16",
            compute_dtype="bfloat16",
            attention=attention,
        )
    return Level(quantization=variant.quantization, compute_dtype="bfloat16", attention=attention)


def adapted_by(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Name of each module that PEFT put an adapter on → what is trained there."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix("base_model.model."): [
            (own, parameter) for own, parameter in module.named_parameters() if parameter.requires_grad
        ]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def is_quantized(model: nn.Module) -> bool:
    """bitsandbytes has a layer in it."""
    return any(type(module).__module__.startswith("bitsandbytes.") for module in model.modules())


def without_gradient(model: nn.Module) -> set[str]:
    """Names of the modules whose own trained parameters got no gradient; of adapters, the modules below.

    AdaLoRA's penalty moves its A and B wherever they are: only E tells.
    """
    tuned = adapted_by(model) if hasattr(model, "peft_config") else None
    if tuned is None:
        groups: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[name.rpartition(".")[0]].append(parameter)
        return {name for name, own in groups.items() if all(each.grad is None for each in own)}
    idle = set()
    for name, trained in tuned.items():
        telling = [each for own, each in trained if "lora_E" in own] or [each for _, each in trained]
        if all(each.grad is None for each in telling):
            idle.add(name)
    return idle


def idle_among(entries: Sequence[str], idle: Collection[str], adapted: Collection[str]) -> list[str]:
    """Entries all of whose modules are idle."""
    own = {entry: [name for name in adapted if f".{name}".endswith(f".{entry}")] for entry in entries}
    return [entry for entry, names in own.items() if names and all(name in idle for name in names)]


def first_words(error: BaseException) -> str:
    """The first sentence of what a library said."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text.rstrip('.'):.200}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries print and warn of: it is about tries."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level, shows_progress = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if shows_progress:
            transformers_logging.enable_progress_bar()
