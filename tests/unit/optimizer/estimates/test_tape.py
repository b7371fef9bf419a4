"""Tapes stretched to full depth, read between two sizes, and played: small ones by hand, and layered ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.optimizer.estimates.allocator import MIN_BLOCK_BYTES
from rankwise.optimizer.estimates.tape import (
    TRACED_LAYERS,
    Event,
    Kind,
    Peaks,
    Phase,
    Place,
    Tape,
    Uneven,
    Work,
    interpolated,
    peaks_of,
    sorted_frees,
    steps_of,
    stretch,
    total_work,
)

KIB = 1024
STACK, OTHER = "model.layers", "decoder.layers"
SIZES = st.lists(st.integers(1, 5_000), max_size=3)


class Taping:
    """Writes a tape as a recorder would."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kinds: dict[int, Kind] = {}
        self.work: dict[Place | None, Work] = {}
        self.phase = Phase.BUILD
        self.place: Place | None = None

    def allocate(self, size: int, kind: Kind = Kind.ACTIVATIONS) -> int:
        block = len(self.kinds)
        self.kinds[block] = kind
        self.events.append(Event(block, size, self.phase, self.place))
        return block

    def free(self, *blocks: int) -> None:
        self.events += [Event(block, 0, self.phase, self.place) for block in blocks]

    def compute(self, flops: int) -> None:
        work = Work(Counter(bfloat16=flops), moved_bytes=2 * flops, kernels=1)
        self.work.setdefault(self.place, Work()).add(work)

    def tape(self) -> Tape:
        return Tape(tuple(sorted_frees(self.events)), self.kinds, self.work)


def layered(depth: int, *, kept: list[int], passing: list[int], states: list[int], hidden: int) -> Tape:
    """A step through a stack of this many layers, with modules before and after it.

    Each layer keeps some blocks for its backward pass and frees others at once; its output is freed by the
    next layer, its gradient by the layer before, and what autocast keeps at the end of the forward pass.
    """
    taping = Taping()
    places = [Place(STACK, layer) for layer in range(depth)]
    for place in (None, *places):
        taping.place = place
        taping.allocate(hidden, Kind.BASE_WEIGHTS)
    taping.phase, taping.place = Phase.FORWARD, None
    before = taping.allocate(hidden)
    cached, own = [], {}
    for place in places:
        taping.place = place
        taping.compute(hidden)
        temporaries = [taping.allocate(size) for size in passing]
        own[place] = [taping.allocate(size) for size in kept]
        cached.append(taping.allocate(hidden + 1))
        output = taping.allocate(hidden)
        taping.free(*temporaries, before)
        before = output
    taping.place = None
    loss = taping.allocate(7 * hidden, Kind.LOGITS_AND_LOSS)
    taping.free(*reversed(cached))
    taping.phase = Phase.BACKWARD
    gradient = taping.allocate(hidden)
    taping.free(loss, before)
    for place in reversed(places):
        taping.place = place
        taping.compute(2 * hidden)
        new = taping.allocate(hidden)
        taping.free(gradient, *own[place])
        gradient = new
    taping.place = None
    taping.free(gradient)
    taping.phase = Phase.OPTIMIZER
    for place in places:
        taping.place = place
        for size in states:
            taping.allocate(size, Kind.OPTIMIZER_STATE)
    taping.phase, taping.place = Phase.EVALUATION, None
    taping.free(taping.allocate(3 * hidden))
    return taping.tape()


def history(tape: Tape) -> list[tuple[object, ...]]:
    """Events with blocks numbered as they come: tapes of equal histories differ in numbers alone."""
    numbers: dict[int, int] = {}
    return [
        (numbers.setdefault(event.block, len(numbers)), *event[1:], tape.kinds[event.block])
        for event in tape.events
    ]


@settings(max_examples=30)
@given(st.integers(5, 20), SIZES, SIZES, SIZES, st.integers(1, 5_000))
def test_a_stretched_tape_is_that_of_the_deep_model(
    depth: int, kept: list[int], passing: list[int], states: list[int], hidden: int
) -> None:
    def make(layers: int) -> Tape:
        return layered(layers, kept=kept, passing=passing, states=states, hidden=hidden)

    stretched, deep = stretch(make(TRACED_LAYERS), {STACK: depth}), make(depth)
    assert history(stretched) == history(deep)
    assert peaks_of(stretched) == peaks_of(deep)
    assert total_work(stretched) == total_work(deep)
    assert stretched.work == {place: work for place, work in deep.work.items() if place in stretched.work} | {
        Place(STACK, 1): stretched.work[Place(STACK, 1)]
    }


def test_a_stack_of_traced_depth_stays_as_it_is() -> None:
    tape = layered(TRACED_LAYERS, kept=[1], passing=[2], states=[3], hidden=4)
    assert stretch(tape, {STACK: TRACED_LAYERS}) is tape


def test_a_stack_that_is_not_on_the_tape_changes_nothing() -> None:
    tape = layered(TRACED_LAYERS, kept=[1], passing=[2], states=[3], hidden=4)
    assert history(stretch(tape, {OTHER: 9})) == history(tape)


def changed(tape: Tape, layer: int, **changes: object) -> Tape:
    """The tape with the first activation that this layer allocates changed."""
    events = list(tape.events)
    at = next(
        number
        for number, event in enumerate(events)
        if event.size_bytes and event.phase is Phase.FORWARD and event.place == Place(STACK, layer)
    )
    events[at] = events[at]._replace(**changes)
    return replace(tape, events=events)


@pytest.fixture
def tape() -> Tape:
    return layered(TRACED_LAYERS, kept=[100, 200], passing=[300], states=[400], hidden=500)


def test_layers_of_other_sizes_are_uneven(tape: Tape) -> None:
    with pytest.raises(Uneven, match="allocate 300 and 301 bytes"):
        stretch(changed(tape, 2, size_bytes=301), {STACK: 8})


def test_layers_that_allocate_more_often_are_uneven(tape: Tape) -> None:
    extra = Event(max(tape.kinds) + 1, 64, Phase.FORWARD, Place(STACK, 1))
    at = next(
        number
        for number, event in enumerate(tape.events)
        if event.phase is Phase.FORWARD and event.place == Place(STACK, 1)
    )
    events = [*tape.events[:at], extra, *tape.events[at:]]
    with pytest.raises(Uneven, match="differ in how often"):
        stretch(Tape(events, {**tape.kinds, extra.block: Kind.TEMPORARIES}, tape.work), {STACK: 8})


def test_layers_that_do_not_follow_each_other_are_uneven(tape: Tape) -> None:
    """As where a model goes through its layers in pairs, or an odd one lies between them."""
    at = next(
        number
        for number, event in enumerate(tape.events)
        if event.phase is Phase.FORWARD and event.place == Place(STACK, 2)
    )
    block = max(tape.kinds) + 1
    between = [Event(block, 64, Phase.FORWARD), Event(block, 0, Phase.FORWARD)]
    events = [*tape.events[:at], *between, *tape.events[at:]]
    with pytest.raises(Uneven, match="do not follow one another"):
        stretch(Tape(events, {**tape.kinds, block: Kind.TEMPORARIES}, tape.work), {STACK: 8})


def test_what_is_dropped_once_the_next_layer_has_begun_is_repeated_as_well() -> None:
    """As of an optimizer that goes from one parameter to the next: its last temporary lives until then."""

    def make(layers: int) -> Tape:
        taping = Taping()
        taping.phase = Phase.OPTIMIZER
        last: int | None = None
        for layer in range(layers):
            taping.place = Place(STACK, layer)
            states = [taping.allocate(KIB) for _ in range(2)]
            if last is not None:
                taping.place = Place(STACK, layer - 1)
                taping.free(last)
                taping.place = Place(STACK, layer)
            taping.free(states[0])
            last = taping.allocate(3 * KIB)
        taping.place = None
        taping.free(taping.allocate(KIB))
        return taping.tape()

    stretched, deep = history(stretch(make(TRACED_LAYERS), {STACK: 9})), history(make(9))
    assert [what[:3] for what in stretched] == [what[:3] for what in deep]  # places of frees may differ


def test_layers_that_free_in_other_orders_are_uneven(tape: Tape) -> None:
    events = list(tape.events)
    freed = [
        number
        for number, event in enumerate(events)
        if not event.size_bytes and event.phase is Phase.BACKWARD and event.place == Place(STACK, 2)
    ]
    own = [n for n in freed if tape.kinds[events[n].block] is Kind.ACTIVATIONS][:2]
    events[own[0]], events[own[1]] = events[own[1]], events[own[0]]
    with pytest.raises(Uneven, match="different orders"):
        stretch(replace(tape, events=events), {STACK: 8})


def test_two_stacks_are_stretched_one_after_the_other() -> None:
    def make(one: int, other: int) -> Tape:
        taping = Taping()
        taping.phase = Phase.FORWARD
        for stack, depth, size in ((STACK, one, KIB), (OTHER, other, 3 * KIB)):
            for layer in range(depth):
                taping.place = Place(stack, layer)
                taping.allocate(size)
        return taping.tape()

    stretched = stretch(make(TRACED_LAYERS, TRACED_LAYERS), {STACK: 9, OTHER: 6})
    assert history(stretched) == history(make(9, 6))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_sizes_are_read_from_a_line_in_rows_and_a_parabola_in_length(
    sizes: list[tuple[int, int, int, int]], rows: int, length: int
) -> None:
    """A size is a sum of products: what no batch changes, and what grows with rows, length or its square."""

    def make(rows: int, length: int) -> Tape:
        taping = Taping()
        taping.phase = Phase.FORWARD
        for fixed, by_rows, by_tokens, by_squares in sizes:
            taping.allocate(1 + fixed + rows * (by_rows + length * by_tokens + length**2 * by_squares))
            taping.compute(rows * length * by_tokens)
        return taping.tape()

    by_rows = interpolated({2: make(2, 8), 4: make(4, 8)}, rows)
    by_length = interpolated({2: make(3, 2), 4: make(3, 4), 9: make(3, 9)}, length)
    for found, wanted in ((by_rows, make(rows, 8)), (by_length, make(3, length))):
        assert history(found) == history(wanted)
        assert found.work == wanted.work


def hand_made(*sizes: int) -> Tape:
    taping = Taping()
    for size in sizes:
        taping.allocate(size)
    return taping.tape()


@pytest.mark.parametrize(
    "other",
    [
        hand_made(10, 20, 30),
        hand_made(10),
        replace(hand_made(10, 20), events=(Event(0, 10, Phase.BUILD), Event(0, 0, Phase.BUILD))),
        replace(hand_made(10, 20), events=(Event(0, 10, Phase.BUILD), Event(1, 20, Phase.FORWARD))),
        replace(hand_made(10, 20), events=(Event(0, 10, Phase.BUILD), Event(2, 20, Phase.BUILD))),
    ],
    ids=["longer", "shorter", "freed", "other phase", "other block"],
)
def test_tapes_that_differ_in_more_than_sizes_are_uneven(other: Tape) -> None:
    with pytest.raises(Uneven, match="other operations run"):
        interpolated({1: hand_made(10, 20), 2: other}, 3)


def two_steps() -> Tape:
    """Weights of 4 KiB; an activation of 2; a gradient of 1; state of 3; an evaluation of 1."""
    taping = Taping()
    taping.allocate(4 * KIB, Kind.BASE_WEIGHTS)
    taping.phase = Phase.FORWARD
    activation = taping.allocate(2 * KIB)
    taping.phase = Phase.BACKWARD
    gradient = taping.allocate(KIB, Kind.GRADIENTS)
    taping.free(activation)
    taping.phase = Phase.OPTIMIZER
    taping.allocate(3 * KIB, Kind.OPTIMIZER_STATE)
    taping.free(gradient)
    taping.phase = Phase.EVALUATION
    taping.free(taping.allocate(KIB - 1))
    return taping.tape()


def test_a_second_step_meets_the_optimizer_state_of_the_first() -> None:
    tape = two_steps()
    events = list(steps_of(tape))
    live: set[int] = set()
    allocated = Counter[Phase]()
    for event in events:
        assert (event.block in live) == (event.size_bytes == 0)
        live ^= {event.block}
        allocated[event.phase] += bool(event.size_bytes)
    assert allocated == {
        Phase.BUILD: 1,
        Phase.FORWARD: 2,
        Phase.BACKWARD: 2,
        Phase.OPTIMIZER: 1,
        Phase.EVALUATION: 1,
    }
    assert live == {0, 3}  # weights and state


def test_peaks_by_hand() -> None:
    assert peaks_of(two_steps()) == Peaks(
        peak_bytes=10 * KIB,
        by_phase={
            Phase.BUILD: 4 * KIB,
            Phase.FORWARD: 9 * KIB,
            Phase.BACKWARD: 10 * KIB,
            Phase.OPTIMIZER: 8 * KIB,
            Phase.EVALUATION: 8 * KIB,
        },
        breakdown={
            Kind.BASE_WEIGHTS: 4 * KIB,
            Kind.ACTIVATIONS: 2 * KIB,
            Kind.GRADIENTS: KIB,
            Kind.OPTIMIZER_STATE: 3 * KIB,
        },
    )


@settings(max_examples=30)
@given(SIZES, SIZES, SIZES, st.integers(1, 5_000))
def test_a_breakdown_adds_up_to_the_peak_in_whole_granules(
    kept: list[int], passing: list[int], states: list[int], hidden: int
) -> None:
    peaks = peaks_of(layered(6, kept=kept, passing=passing, states=states, hidden=hidden))
    assert sum(peaks.breakdown.values()) == peaks.peak_bytes == max(peaks.by_phase.values())
    assert all(size > 0 and size % MIN_BLOCK_BYTES == 0 for size in peaks.breakdown.values())


@pytest.mark.parametrize(("times", "flops"), [(0, 0), (0.5, 15), (1.5, 45), (3, 90)])
def test_work_is_added_by_shares(times: float, flops: int) -> None:
    total = Work()
    total.add(Work(Counter(bfloat16=30), moved_bytes=60, kernels=2), times)
    assert total == Work(Counter(bfloat16=flops), moved_bytes=2 * flops, kernels=round(2 * times))


def test_work_is_summed_over_layers() -> None:
    total = total_work(layered(6, kept=[], passing=[], states=[], hidden=10))
    assert total == Work(Counter(bfloat16=6 * 30), moved_bytes=6 * 60, kernels=12)
