"""Levels that spread a training over several processes, or move a part of it to the host: the mildest first.

Rung by rung more is divided, or offloaded, and more is sent around for it. Knows nothing of devices, and of
which pairs of adapter and level cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .domain import Adapter, Level, Method, Quantization
from .fitting import Memory

ROOM_SHARE = 0.5
"""A rung that leaves this share of a device to activations is enough; below it the batch may not fit."""

STEP_SHARE = 0.9
"""A further rung is worth a trial if it needs at most this share of what the one before needs."""

_Changes = Mapping[str, Any]

_DDP: tuple[_Changes, ...] = ({},)
_RUNGS: tuple[tuple[_Changes, ...], ...] = (
    _DDP,
    ({"zero_stage": 1},),
    ({"zero_stage": 2},),
    ({"zero_stage": 2, "offload": "optimizer"},),
    ({"zero_stage": 3}, {"fsdp": 1}, {"fsdp": 2}),
    ({"zero_stage": 3, "offload": "optimizer"},),
    ({"zero_stage": 3, "offload": "all"},),
)

_ALONE: tuple[tuple[_Changes, ...], ...] = (
    ({"zero_stage": 2, "offload": "optimizer"},),
    ({"zero_stage": 3, "offload": "all"},),
)
"""With one device: there is nobody to divide with, only the host."""


def spread_levels(
    adapter: Adapter,
    own: Sequence[Level],
    memory: Memory,
    processes: int,
    admits: Callable[[Level], bool],
) -> list[Level]:
    """The rungs that can help an adapter, each without checkpointing, then with.

    With several processes: those from the first that fits up to one beyond the first that leaves room for
    activations, offloading only while none does. With one: offloading, where nothing else fits. Quantized
    weights are divided only where unquantized ones would not fit divided.

    Args:
        adapter: what is trained.
        own: its levels in one process on one device, those allowed, preferred first.
        memory: that there is.
        processes: that it may be spread over.
        admits: no rule forbids the level.
    """
    if not own or (processes == 1 and any(memory.fits(adapter, level) for level in own)):
        return []
    preferred = memory.preferred(adapter, own)
    plain = next((level for level in own if level.quantization is Quantization.NONE), None)
    blocks = next((level for level in own if level.quantization.is_4bit), None)
    found: list[Level] = []
    for base in (plain or blocks or own[0], blocks):
        if base is not None and not any(map(_divides, found)):
            found = list(_climb(adapter, preferred, base, memory, processes, admits))
    return found


def _climb(
    adapter: Adapter,
    preferred: Level,
    base: Level,
    memory: Memory,
    processes: int,
    admits: Callable[[Level], bool],
) -> Iterator[Level]:
    has_room = False
    taken: dict[bool, Sequence[Level]] = {}
    for rung in _RUNGS if processes > 1 else _ALONE:
        offloads = "offload" in rung[0]
        if has_room and offloads:
            continue
        levels = [_level(adapter, preferred if rung is _DDP else base, each, processes) for each in rung]
        levels = [level for level in levels if admits(level) and memory.fits(adapter, level)]
        if not levels:
            continue
        need = min(memory.least_bytes(adapter, level) for level in levels)
        # What offloads is no measure for what does not: it is smaller, and slower.
        before = taken.get(offloads) or taken.get(False, ())
        if before and not _divides(before[0]):
            # DDP at the dtypes of this rung: they are no merit of dividing.
            before = [_undivided(level) for level in levels]
        if before and need > STEP_SHARE * min(memory.least_bytes(adapter, level) for level in before):
            continue
        for level in levels:
            yield level
            checkpointed = replace(level, gradient_checkpointing=True)
            if level != checkpointed and admits(checkpointed):
                yield checkpointed
        if has_room:
            return
        has_room = need <= ROOM_SHARE * memory.capacity_bytes
        taken[offloads] = levels


def _level(adapter: Adapter, base: Level, changes: _Changes, processes: int) -> Level:
    """A level of one process, spread so.

    DeepSpeed casts all weights to one dtype, and keeps float32 ones of what is trained beside. FSDP1 divides
    units of one dtype; FSDP2 each weight by itself, so that frozen ones may have 16 bits.
    """
    dtypes: _Changes = {}
    if changes.get("zero_stage"):
        dtypes = {"weight_dtype": base.compute_dtype, "adapter_dtype": base.compute_dtype}
    elif version := changes.get("fsdp"):
        is_lean = version == 2 and adapter.method is not Method.FULL
        dtypes = {"weight_dtype": base.compute_dtype if is_lean else "float32", "adapter_dtype": "float32"}
    return replace(base, processes=processes, **dtypes, **changes)


def _divides(level: Level) -> bool:
    return bool(level.zero_stage or level.fsdp)


def _undivided(level: Level) -> Level:
    return replace(level, adapter_dtype="float32", zero_stage=0, fsdp=0, offload="none")
