"""What a study is asked to begin with: named LoRA configurations, and one that somebody wrote.

Presets keep their own alpha, twice the rank, and their own dropout, whatever the data. Knows nothing of which
other candidates there are.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import InputError
from ..probes.profiles import ModelProfile, TaskKind
from .adapters import AdapterFactory
from .domain import Adapter, Level, OwnLora, Preset, Quantization, StudyFacts, StudyRequest
from .selection import select
from .targets import TARGET_SETS

DROPOUT = 0.1
MANY_ROWS = 100_000
"""From more rows than this on, ``auto`` is about memory."""

ALL_LINEAR = "all-linear"
QUARTER = 4


class _Shape(NamedTuple):
    rank: int
    target_set: str
    quantization: Quantization = Quantization.NONE


PRESETS: Mapping[Preset, _Shape] = {
    Preset.EFFICIENT: _Shape(4, "minimal"),
    Preset.BALANCED: _Shape(8, "balanced"),
    Preset.EXPRESSIVE: _Shape(16, "full"),
    Preset.QLORA_MEMORY: _Shape(4, "minimal", Quantization.NF4),
    Preset.QLORA_QUALITY: _Shape(8, "balanced", Quantization.NF4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An adapter to begin with, and the levels that it is asked for at."""

    name: str
    """For people."""
    adapter: Adapter
    quantization: Quantization = Quantization.NONE
    compute_dtype: str | None = None
    """None: any."""
    double_quantization: bool = False
    skip_modules: tuple[str, ...] = ()

    def at(self, level: Level) -> Level | None:
        """The level as it is asked for; None where it is another."""
        if level.quantization is not self.quantization:
            return None
        if self.compute_dtype not in (None, level.compute_dtype):
            return None
        return replace(level, double_quantization=self.double_quantization, skip_modules=self.skip_modules)


def starts_of(facts: StudyFacts, request: StudyRequest) -> tuple[Start, ...]:
    """What the request begins with, its own LoRA first.

    Raises:
        InputError: the model has no such modules.
    """
    factory = AdapterFactory.of(facts)
    own = () if request.lora is None else (_own(request.lora, factory, facts.model),)
    return (*own, *_presets(facts, request, factory))


def preset_for(facts: StudyFacts) -> Preset:
    """The preset that suits the task and the number of rows."""
    task = facts.dataset.task
    if facts.dataset.usable_rows > MANY_ROWS:
        return Preset.QLORA_MEMORY
    if task.kind is TaskKind.REGRESSION:
        return Preset.EFFICIENT
    return Preset.EXPRESSIVE if len(task.labels) > 2 else Preset.BALANCED


def graded_ranks(model: ModelProfile, *, first: int | None, last: int | None) -> tuple[tuple[str, int], ...]:
    """Patterns that give the first and the last quarter of each stack of layers ranks of their own.

    A quarter is rounded down, but one layer at least; None leaves it as it is.
    """
    stacks: defaultdict[str, set[int]] = defaultdict(set)
    for tensor in model.tensors:
        if tensor.block is not None:
            stack, _, number = tensor.block.rpartition(".")
            stacks[stack].add(int(number))
    patterns = []
    for stack, found in stacks.items():
        numbers = sorted(found)
        quarter = max(1, len(numbers) // QUARTER)
        if len(numbers) < 2:
            continue
        for rank, chosen in ((last, numbers[-quarter:]), (first, numbers[:quarter])):
            if rank is not None:
                prefix = f"{re.escape(stack)}\\." if stack else ""
                patterns.append((rf"{prefix}({'|'.join(map(str, chosen))})\..*", rank))
    return tuple(patterns)


def _presets(facts: StudyFacts, request: StudyRequest, factory: AdapterFactory) -> Iterator[Start]:
    wanted = (preset_for(facts) if preset is Preset.AUTO else preset for preset in request.presets)
    for preset in dict.fromkeys(wanted):
        rank, target_set, quantization = PRESETS[preset]
        made = factory.lora(rank, target_set)
        if made is None:
            raise _nothing_to_adapt(f"preset {preset}", facts.model)
        yield Start(
            name=f"preset {preset}",
            adapter=replace(made, dropout=0.0 if made.target_parameters else DROPOUT),
            quantization=quantization,
        )


def _own(asked: OwnLora, factory: AdapterFactory, model: ModelProfile) -> Start:
    set_name = "full" if asked.targets == (ALL_LINEAR,) else asked.targets[0]
    is_set = len(asked.targets) == 1 and set_name in TARGET_SETS
    made = factory.lora(asked.rank, set_name if is_set else "full")
    if made is None:
        raise _nothing_to_adapt("lora", model)
    if not is_set:
        chosen = select(",".join(asked.targets), model)
        made = replace(
            made,
            targets=chosen.where.modules,
            target_pattern=chosen.where.pattern,
            target_parameters=(),
            target_set=chosen.written,
        )
    alpha = 2.0 * asked.rank if asked.alpha is None else asked.alpha
    graded = graded_ranks(model, first=asked.first_rank, last=asked.last_rank)
    adapter = replace(
        made,
        alpha=alpha,
        dropout=asked.dropout,
        use_rslora=asked.use_rslora,
        use_dora=asked.use_dora,
        rank_pattern=(*asked.rank_pattern, *graded),
        alpha_pattern=(
            *asked.alpha_pattern,
            *((pattern, alpha / asked.rank * rank) for pattern, rank in graded),
        ),
    )
    return Start(
        name="lora",
        adapter=adapter,
        quantization=asked.quantization,
        compute_dtype=asked.compute_dtype,
        double_quantization=asked.double_quantization,
        skip_modules=_skipped(asked, adapter, model),
    )


def _skipped(asked: OwnLora, adapter: Adapter, model: ModelProfile) -> tuple[str, ...]:
    """What is not quantized: as asked, and the output layer, which transformers then no longer spares."""
    if not asked.skip_modules or asked.quantization is Quantization.NONE:
        return ()
    names = [module.name for module in model.modules if module.kind in ("linear", "conv1d")]
    for end in asked.skip_modules:
        # transformers (5.23) looks at the end of a name, and at its beginning.
        if not any(f".{name}".endswith(f".{end}") or f"{name}.".startswith(f"{end}.") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            near = difflib.get_close_matches(end, [*known, *names], 3) or known
            raise InputError(
                f"{model.architecture} has no linear layer {end!r} that could be skipped",
                next_step=f"use names such as {', '.join(near)}",
            )
    heads = [module.name for module in model.modules if module.role == "head"]
    return tuple(dict.fromkeys((*asked.skip_modules, *(h for h in heads if h not in adapter.trained_parts))))


def _nothing_to_adapt(what: str, model: ModelProfile) -> InputError:
    return InputError(
        f"{what}: {model.source} ({model.architecture}) has no linear layer that LoRA could adapt",
        next_step="leave it out: the study then tries what suits the model",
    )
