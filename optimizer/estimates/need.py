"""What a tape needs of a device's memory, and the largest batch or length whose tape still fits.

Knows nothing of particular devices: limits come in bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .allocator import replay
from .tape import Event, Kind, Phase, Tape, peaks_in, steps_of

MOST_TRIES = 12
"""Of sizes that are looked at to find the largest that fits; more only where memory is no straight line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that one process needs."""

    allocated_bytes: int
    """Most that tensors and cuBLAS's workspaces hold at a time: ``torch.cuda.max_memory_allocated``."""
    reserved_bytes: int
    """Most that PyTorch's caching allocator takes for them: ``torch.cuda.max_memory_reserved``."""
    by_phase: Mapping[Phase, int]
    """Most that is allocated in each phase."""
    breakdown: Mapping[Kind, int]
    """What is allocated at the peak."""


def need_of(
    tape: Tape,
    *,
    workspaces: tuple[int, ...] = (),
    loads_at_once: bool = False,
    expandable_segments: bool = False,
) -> Need:
    """Play a tape through a model of PyTorch's allocator.

    Args:
        workspaces: bytes that cuBLAS allocates at the first products, and keeps.
        loads_at_once: before it loads weights onto a GPU, transformers (5.23, ``caching_allocator_warmup``)
            takes as much in one piece and gives it back, for the weights to be cut from.
    """
    events = steps_of(tape)
    peaks = peaks_in(events, tape.kinds)
    played = _played(tape, events, workspaces, loads_at_once=loads_at_once)
    reserved = replay(
        played, streams=_streams_of(tape), lagging=tape.lagging, expandable_segments=expandable_segments
    )
    kept = sum(workspaces)
    by_phase = {phase: size + (0 if phase is Phase.BUILD else kept) for phase, size in peaks.by_phase.items()}
    breakdown = {**peaks.breakdown, Kind.WORKSPACE: kept} if kept else dict(peaks.breakdown)
    return Need(
        allocated_bytes=reserved.peak_allocated_bytes,
        reserved_bytes=reserved.peak_reserved_bytes,
        by_phase=by_phase,
        breakdown=breakdown,
    )


def reserved_bytes(
    tape: Tape,
    *,
    workspaces: tuple[int, ...] = (),
    loads_at_once: bool = False,
    expandable_segments: bool = False,
) -> int:
    """As :func:`need_of`, of its reserved bytes alone."""
    played = _played(tape, steps_of(tape), workspaces, loads_at_once=loads_at_once)
    replayed = replay(
        played, streams=_streams_of(tape), lagging=tape.lagging, expandable_segments=expandable_segments
    )
    return replayed.peak_reserved_bytes


def largest(need_bytes: Callable[[int], int], limit_bytes: int, *, most: int, start: int) -> int | None:
    """The largest size from 1 to ``most`` whose need is within the limit; None where not even 1 is.

    Args:
        need_bytes: size → bytes needed, rising with the size.
        start: a size to begin with.
    """
    known: dict[int, int] = {}

    def need(size: int) -> int:
        if size not in known:
            known[size] = need_bytes(size)
        return known[size]

    low, high = 0, most + 1
    guess = min(start, most)
    for _ in range(MOST_TRIES + most.bit_length()):
        if need(guess) <= limit_bytes:
            low = guess
        else:
            high = guess
        if high - low <= 1:
            break
        guess = _guess(known, limit_bytes, low, high, tries=len(known))
    return low or None


def _guess(known: Mapping[int, int], limit_bytes: int, low: int, high: int, *, tries: int) -> int:
    """Where the line through the two nearest known sizes meets the limit; the middle if that goes on long."""
    middle = (low + high) // 2
    if tries > MOST_TRIES:
        return middle
    nearest = sorted(known, key=lambda size: abs(known[size] - limit_bytes))[:2]
    if len(nearest) < 2:
        return min(high - 1, max(low + 1, 2 * nearest[0] if known[nearest[0]] <= limit_bytes else middle))
    one, other = nearest
    slope = (known[other] - known[one]) / (other - one)
    met = int(one + (limit_bytes - known[one]) / slope) if slope > 0 else middle
    return min(high - 1, max(low + 1, met))


def _streams_of(tape: Tape) -> dict[int, int]:
    """Of both steps, see :func:`steps_of`."""
    offset = max(tape.kinds, default=0) + 1
    return {block + step: stream for block, stream in tape.streams.items() for step in (0, offset)}


def _played(
    tape: Tape, events: Sequence[Event], workspaces: tuple[int, ...], *, loads_at_once: bool
) -> Iterator[tuple[int, int]]:
    """Its allocations, with what loading takes at first, and workspaces at the start of the first step."""
    first_free = 2 * (max(tape.kinds, default=0) + 1)
    if loads_at_once:
        loaded: Counter[Kind] = Counter()
        for event in events:
            if event.phase is Phase.BUILD:
                loaded[tape.kinds[event.block]] += event.size_bytes
        # Weights that are all trained count as those of an adapter.
        if size := max(loaded[Kind.BASE_WEIGHTS], loaded[Kind.ADAPTER]):
            yield from ((first_free, size), (first_free, 0))
    start = next((at for at, event in enumerate(events) if event.phase is not Phase.BUILD), len(events))
    yield from (event[:2] for event in events[:start])
    yield from enumerate(workspaces, start=first_free)
    yield from (event[:2] for event in events[start:])
