"""The first design's preset (``--tiers``): a fixed table of adapters by free memory, kept for comparison.

Published results contradict its order, so a study uses it only where it is asked to. Knows nothing of
priors and of which trial comes next.
"""

from __future__ import annotations

from dataclasses import replace

from ..probes.profiles import HardwareProfile, ModelProfile
from .adapters import AdapterFactory
from .domain import Adapter, Complexity, Level, Method, StudyFacts, StudyRequest
from .rules import has_bfloat16, preferred_attention

GIB = 2**30

TIERS: tuple[tuple[float, tuple[tuple[Method, int | None, str], ...]], ...] = (
    (8, ((Method.IA3, None, "minimal"), (Method.LORA, 8, "minimal"))),
    (10, ((Method.LORA, 8, "minimal"), (Method.LORA, 16, "minimal"))),
    (14, ((Method.LORA, 16, "minimal"), (Method.LORA, 16, "balanced"))),
    (20, ((Method.LORA, 16, "balanced"), (Method.LORA, 32, "balanced"), (Method.LORA, 32, "full"))),
    (float("inf"), ((Method.LORA, 32, "full"), (Method.LORA, 64, "full"))),
)
"""(below this many GiB free, adapters as method, rank and target set)."""

COMPLEX_ADAPTER = (Method.ADALORA, 32, "balanced")
"""Joins the last row when the task is complex."""

COMPLEX = frozenset({Complexity.COMPLEX, Complexity.VERY_COMPLEX})


def tier_pairs(
    facts: StudyFacts, request: StudyRequest, factory: AdapterFactory
) -> list[tuple[Adapter, Level]]:
    """The baseline without PEFT, then the row for the memory that is free, each at the preset's one level.

    Should the best of them not fit, the design goes on to offloading and ZeRO: :mod:`.ladder` has those.
    """
    memory_bytes = free_bytes(facts.hardware)
    if request.memory_limit_bytes is not None:
        memory_bytes = min(memory_bytes, request.memory_limit_bytes)
    level = preset_level(facts.hardware, facts.model)
    adapters = [Adapter(method=Method.FULL)]
    for method, rank, target_set in tier(memory_bytes, request.complexity):
        adapter = _adapter(factory, method, rank, target_set)
        if adapter is not None:
            adapters.append(adapter)
    return [
        (adapter, level)
        for adapter in dict.fromkeys(adapters)
        if not request.methods or adapter.method in request.methods
    ]


def tier(memory_bytes: int, complexity: Complexity | None) -> tuple[tuple[Method, int | None, str], ...]:
    """The table's row for this much free memory."""
    row = next(row for below_gib, row in TIERS if memory_bytes < below_gib * GIB)
    is_last = row is TIERS[-1][1]
    return (*row, COMPLEX_ADAPTER) if is_last and complexity in COMPLEX else row


def preset_level(hardware: HardwareProfile, model: ModelProfile) -> Level:
    """Checkpointing and AMP, as far as model and hardware can."""
    level = Level(
        gradient_checkpointing=model.supports_gradient_checkpointing, attention=preferred_attention(model)
    )
    if has_bfloat16(hardware):
        return replace(level, compute_dtype="bfloat16")
    return replace(level, compute_dtype="float16") if hardware.gpus else level


def free_bytes(hardware: HardwareProfile) -> int:
    """Free memory of the GPU that has most, or the host's where there is none; all of it where unknown."""
    free = (gpu.total_bytes if gpu.free_bytes is None else gpu.free_bytes for gpu in hardware.gpus)
    return max(free, default=hardware.host.ram_available_bytes)


def _adapter(factory: AdapterFactory, method: Method, rank: int | None, target_set: str) -> Adapter | None:
    if rank is None:
        return factory.ia3(target_set)
    if method is Method.LORA:
        return factory.lora(rank, target_set)
    adapter = factory.adalora(rank, target_set)
    return adapter and replace(adapter, alpha=2.0 * rank)
