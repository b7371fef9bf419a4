"""Allocations of one training step in the order in which they happen, and what follows from them.

A :class:`Tape` is recorded on a model that is cut to a few layers, then stretched to its full depth: layers
that are alike allocate alike. Knows nothing of torch, of how a tape is recorded, and of devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from itertools import accumulate, groupby
from typing import NamedTuple, TypeAlias

from .allocator import rounded

TRACED_LAYERS = 4
"""The first, two to compare and to repeat, and the last: the outer ones border on other modules."""


class Kind(StrEnum):
    """What a block of memory holds."""

    BASE_WEIGHTS = "base_weights"
    ADAPTER = "adapter"
    GRADIENTS = "gradients"
    OPTIMIZER_STATE = "optimizer_state"
    ACTIVATIONS = "activations"
    LOGITS_AND_LOSS = "logits_and_loss"
    DEQUANTISED = "dequantised"
    INPUTS = "inputs"
    TEMPORARIES = "temporaries"
    WORKSPACE = "workspace"
    """cuBLAS's; on no tape, as no operator returns it."""


class Phase(StrEnum):
    """Part of a step, in the order of a tape."""

    BUILD = "build"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EVALUATION = "evaluation"
    SAVE = "save"


NEIGHBOURS = 2
"""Layers whose blocks may be freed by one of them."""

STEP = frozenset({Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER})
"""The phases of a training step."""


class Place(NamedTuple):
    """A layer of one of a model's stacks of layers."""

    stack: str
    """Name of the list of layers, such as ``model.layers``."""
    layer: int


class Uneven(Exception):
    """Layers that should be alike are not: this tape cannot be stretched."""


class Event(NamedTuple):
    """A block allocated (``size_bytes`` > 0, before rounding) or freed (0)."""

    block: int
    size_bytes: int
    phase: Phase
    place: Place | None = None
    """None where the event belongs to no layer."""


_Segment: TypeAlias = tuple[Place | None, list[Event]]
"""Events that follow one another in one layer of a stack; outside of it: None."""


@dataclass(slots=True)
class Work:
    """What is computed: floating-point operations of matrix products and attention by dtype, bytes that all
    other operators read and write, kernels launched."""

    flops: Counter[str] = field(default_factory=Counter)
    moved_bytes: int = 0
    kernels: int = 0

    def add(self, other: Work, times: float = 1) -> None:
        """Add another's, so many times."""
        for dtype, number in other.flops.items():
            self.flops[dtype] += round(number * times)
        self.moved_bytes += round(other.moved_bytes * times)
        self.kernels += round(other.kernels * times)


@dataclass(frozen=True, slots=True)
class Tape:
    """Everything that one training step, an evaluation and a checkpoint allocate and compute."""

    events: Sequence[Event]
    kinds: Mapping[int, Kind]
    """What each block holds."""
    work: Mapping[Place | None, Work]
    """Of the training step alone, by layer."""
    streams: Mapping[int, int] = field(default_factory=dict)
    """Blocks that are allocated on another CUDA stream than the first, and its number."""
    lagging: frozenset[int] = frozenset()
    """Streams whose blocks others may still use when they are freed (see ``allocator.CachingAllocator``)."""


def stretch(tape: Tape, depths: Mapping[str, int]) -> Tape:
    """The tape of a model whose stacks have this many layers in place of :data:`TRACED_LAYERS`.

    The second layer is repeated. Blocks keep their order: those that a layer leaves to its neighbour are
    left by each copy to its neighbour.

    Raises:
        Uneven: the second and the third layer differ, or layers do not come one after another.
    """
    for stack, depth in depths.items():
        if depth != TRACED_LAYERS:
            tape = _Stretching(tape, stack, depth).result()
    return tape


def sorted_frees(events: Sequence[Event]) -> Iterator[Event]:
    """The events, where what layers allocated and is freed outside of them belongs to layers too.

    At the end of autocast, and of the graph, what many layers kept goes in no order: it is freed layer by
    layer, as nothing is allocated in between. What neighbours kept goes with what came last. What is freed at
    once goes by age, as else the order hangs on addresses and differs from layer to layer.
    """
    for _, run in groupby(_with_owners(events), key=lambda event: (bool(event.size_bytes), *event[2:])):
        own = list(run)
        yield from own if own[0].size_bytes else sorted(own, key=lambda event: event.block)


def _with_owners(events: Sequence[Event]) -> Iterator[Event]:
    """The events, those outside of layers labelled."""
    owners = {event.block: event.place for event in events if event.size_bytes}
    last: Place | None = None
    for is_outside, run in groupby(events, key=lambda event: not event.size_bytes and event.place is None):
        own = list(run)
        if is_outside:
            layers = {place for event in own if (place := owners[event.block]) is not None}
            if len(layers) > NEIGHBOURS:
                own = [event._replace(place=owners[event.block]) for event in own]
            elif layers:
                own = [event._replace(place=last if owners[event.block] else None) for event in own]
            own.sort(key=lambda event: (event.place or ("", 0), event.block))
        yield from own
        last = own[-1].place


def _uninterrupted(segments: Sequence[_Segment]) -> list[_Segment]:
    """Those joined in which one layer allocates, before and after blocks of another are freed.

    An optimizer that goes from parameter to parameter drops what it made for a layer's last when it has begun
    with the next layer's first.
    """
    joined: list[_Segment] = []
    for number, segment in enumerate(segments):
        if joined and (
            segment[0] == joined[-1][0] or _interrupts(segment, joined[-1], segments[number + 1 : number + 2])
        ):
            joined[-1][1].extend(segment[1])
        else:
            joined.append(segment)
    return joined


def _interrupts(segment: _Segment, before: _Segment, following: Sequence[_Segment]) -> bool:
    """Only frees, in a layer, between two segments of another one that allocate."""
    if segment[0] is None or before[0] is None or not following or following[0][0] != before[0]:
        return False
    return not _allocates(segment) and _allocates(before) and _allocates(following[0])


def _allocates(segment: _Segment) -> bool:
    return any(event.size_bytes for event in segment[1])


class _Stretching:
    """One stack of one tape being stretched."""

    def __init__(self, tape: Tape, stack: str, depth: int) -> None:
        self.tape, self.stack, self.depth = tape, stack, depth
        # Block → traced layer that allocates it; blocks of other modules are not in here.
        self.owners = {
            event.block: event.place.layer
            for event in tape.events
            if event.size_bytes and event.place and event.place.stack == stack
        }
        self.kinds = dict(tape.kinds)
        self.copies = dict(self._number_copies())
        # Block of the first or third layer → the block of the second that is its like.
        self.second_like: dict[int, int] = {}

    def result(self) -> Tape:
        """The stretched tape."""
        segments = _uninterrupted(
            [(place, list(own)) for place, own in groupby(self.tape.events, key=self._own)]
        )
        events: list[Event] = []
        at = 0
        while at < len(segments):
            place, own = segments[at]
            at += 1
            if place is None or place.layer in (0, TRACED_LAYERS - 1):
                events += [self._moved(event, place) for event in own]
                continue
            next_place, following = segments[at] if at < len(segments) else (None, [])
            at += 1
            if next_place is None or place.layer + next_place.layer != 3:
                raise Uneven(f"layers of {self.stack} do not follow one another")
            ascending = place.layer == 1
            second, third = (own, following) if ascending else (following, own)
            self._require_alike(second, third)
            layers = range(1, self.depth - 2)
            order = layers if ascending else reversed(layers)
            copies = [event for layer in order for event in self._copied(second, layer)]
            moved = [self._moved(event, Place(self.stack, 2)) for event in third]
            events += copies + moved if ascending else moved + copies
        return Tape(events, self.kinds, self._work())

    def _number_copies(self) -> Iterator[tuple[tuple[int, int], int]]:
        """(Block of the second layer, layer of the copy) → the copy's block."""
        number = max(self.kinds, default=0)
        for block, layer in self.owners.items():
            if layer == 1:
                for copy in range(2, self.depth - 2):
                    number += 1
                    self.kinds[number] = self.kinds[block]
                    yield (block, copy), number

    def _own(self, event: Event) -> Place | None:
        return event.place if event.place is not None and event.place.stack == self.stack else None

    def _deep(self, layer: int) -> int:
        """Where a traced layer that is not repeated comes to lie."""
        return layer if layer < 2 else layer - TRACED_LAYERS + self.depth

    def _numbered(self, block: int, layer: int) -> int:
        """The counterpart in this layer of a block of the second."""
        return block if layer == 1 else self.copies[block, layer]

    def _moved(self, event: Event, place: Place | None) -> Event:
        """An event that is not repeated. Of the second layer's blocks it meets those of the nearest copy."""
        is_seconds = event.size_bytes == 0 and self.owners.get(event.block) == 1
        if place is None:
            if is_seconds:
                raise Uneven(f"what layers of {self.stack} allocate is freed outside of them")
            return event
        block = event.block
        if is_seconds:
            block = self._numbered(block, 1 if place.layer == 0 else self.depth - 3)
        return Event(block, event.size_bytes, event.phase, Place(self.stack, self._deep(place.layer)))

    def _copied(self, second: Sequence[Event], layer: int) -> Iterator[Event]:
        """The second layer's events as those of a layer in the middle."""
        place = Place(self.stack, layer)
        for event in second:
            block, owner = event.block, self.owners.get(event.block)
            if event.size_bytes or owner == 1:
                block = self._numbered(block, layer)
            elif owner == 0 and layer > 1:
                block = self._numbered(self.second_like[block], layer - 1)
            elif owner == 2 and layer < self.depth - 3:
                block = self._numbered(self.second_like[block], layer + 1)
            yield Event(block, event.size_bytes, event.phase, place)

    def _require_alike(self, second: Sequence[Event], third: Sequence[Event]) -> None:
        """Note which blocks correspond; raise if the layers differ."""
        if len(second) != len(third):
            raise Uneven(f"layers of {self.stack} differ in how often they allocate")
        for one, other in zip(second, third, strict=True):
            if one.size_bytes != other.size_bytes or one.phase != other.phase:
                raise Uneven(f"layers of {self.stack} allocate {one.size_bytes} and {other.size_bytes} bytes")
            if one.size_bytes:
                self.second_like[other.block] = one.block
                continue
            own, theirs = self.owners.get(one.block), self.owners.get(other.block)
            if own is None or theirs != own + 1:
                raise Uneven(f"layers of {self.stack} free blocks of different owners")
            if own == 0:
                self.second_like[one.block] = other.block
            elif own == 1 and self.second_like[other.block] != one.block:
                raise Uneven(f"layers of {self.stack} free in different orders")

    def _work(self) -> dict[Place | None, Work]:
        work: dict[Place | None, Work] = {}
        for place, done in self.tape.work.items():
            if place is None or place.stack != self.stack:
                work[place] = done
                continue
            moved = Work()
            moved.add(done, self.depth - 3 if place.layer == 1 else 1)
            work[Place(self.stack, self._deep(place.layer))] = moved
        return work


def interpolated(tapes: Mapping[int, Tape], value: int) -> Tape:
    """The tape at another micro-batch or length, from tapes at two values (a line) or three (a parabola).

    Sizes are products of the two and of constants, so that this is exact as long as the same operations run.

    Raises:
        Uneven: the tapes are not the same but for sizes.
    """
    first = next(iter(tapes.values()))
    weights = _lagrange(tuple(tapes), value)
    events: list[Event] = []
    for each in zip(*(tape.events for tape in tapes.values()), strict=False):
        head = each[0]
        if any(
            other[0] != head[0] or bool(other[1]) != bool(head[1]) or other[2:] != head[2:] for other in each
        ):
            raise Uneven("other operations run at other sizes")
        size = sum(weight * event.size_bytes for weight, event in zip(weights, each, strict=True))
        events.append(head._replace(size_bytes=max(1, round(size))) if head.size_bytes else head)
    if any(len(tape.events) != len(events) for tape in tapes.values()):
        raise Uneven("other operations run at other sizes")
    return Tape(events, first.kinds, _work_between(tuple(tapes.values()), weights))


def steps_of(tape: Tape) -> list[Event]:
    """Build, two training steps, evaluation and checkpoint.

    What the first step leaves (optimizer state) is not allocated again by the second, which therefore begins
    with more: blocks of the second step have other numbers.
    """
    step = [event for event in tape.events if event.phase in STEP]
    freed = {event.block for event in step if event.size_bytes == 0}
    left = {event.block for event in step if event.size_bytes and event.block not in freed}
    fresh = {event.block for event in step if event.size_bytes} - left
    offset = max(tape.kinds, default=0) + 1
    again = (
        Event(block + offset, size, phase, place) for block, size, phase, place in step if block in fresh
    )
    return [
        *(event for event in tape.events if event.phase is Phase.BUILD),
        *step,
        *again,
        *(event for event in tape.events if event.phase in (Phase.EVALUATION, Phase.SAVE)),
    ]


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most bytes that are allocated at a time, in all and by phase, and what they hold at the peak."""

    peak_bytes: int
    by_phase: Mapping[Phase, int]
    breakdown: Mapping[Kind, int]


def peaks_of(tape: Tape) -> Peaks:
    """Play a tape; each block counts as many whole granules."""
    return peaks_in(steps_of(tape), tape.kinds)


def peaks_in(events: Sequence[Event], kinds: Mapping[int, Kind]) -> Peaks:
    """As :func:`peaks_of`, of what :func:`steps_of` made of a tape."""
    sizes = {block: rounded(size) for block, size, _, _ in events if size}
    totals = list(accumulate(sizes[block] if size else -sizes[block] for block, size, _, _ in events))
    by_phase: dict[Phase, int] = {}
    for phase, run in groupby(zip(events, totals, strict=True), key=lambda each: each[0].phase):
        by_phase[phase] = max(by_phase.get(phase, 0), *(total for _, total in run), 0)
    peak = max(totals, default=0)
    live: dict[int, int] = {}
    for block, size, _, _ in events[: totals.index(peak) + 1 if totals else 0]:
        if size:
            live[block] = sizes[block]
        else:
            del live[block]
    held: Counter[Kind] = Counter()
    offset = max(kinds, default=0) + 1
    for block, size in live.items():
        held[kinds[block % offset]] += size  # blocks of the second step are numbered from the offset on
    return Peaks(peak, by_phase, dict(held))


def total_work(tape: Tape) -> Work:
    """Of one training step."""
    total = Work()
    for work in tape.work.values():
        total.add(work)
    return total


def _lagrange(points: Sequence[int], value: int) -> list[Fraction]:
    """Weights of the values at these points in the polynomial through them."""
    weights = []
    for point in points:
        weight = Fraction(1)
        for other in points:
            if other != point:
                weight *= Fraction(value - other, point - other)
        weights.append(weight)
    return weights


def _work_between(tapes: Sequence[Tape], weights: Sequence[Fraction]) -> dict[Place | None, Work]:
    work: dict[Place | None, Work] = {}
    for place in tapes[0].work:
        own = [tape.work[place] for tape in tapes]
        dtypes = {dtype for each in own for dtype in each.flops}
        work[place] = Work(
            flops=Counter(
                {
                    d: round(sum(w * each.flops[d] for w, each in zip(weights, own, strict=True)))
                    for d in dtypes
                }
            ),
            moved_bytes=round(sum(w * each.moved_bytes for w, each in zip(weights, own, strict=True))),
            kernels=own[0].kernels,
        )
    return work
