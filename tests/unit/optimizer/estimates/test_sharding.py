"""A rank's tape holds what the libraries' rules say, and no more with more ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.optimizer.estimates.allocator import replay
from rankwise.optimizer.estimates.shard_plan import Offload, Scheme, ShardPlan
from rankwise.optimizer.estimates.sharding import accumulates, host_bytes, sharded, unfilled_bytes
from rankwise.optimizer.estimates.tape import Event, Kind, Phase, Place, Tape, peaks_of, steps_of

MIB = 2**20
ITEM = 2
MASTER = 4
EVERY = [scheme for scheme in Scheme if scheme is not Scheme.NONE]
ZERO = [Scheme.ZERO_1, Scheme.ZERO_2, Scheme.ZERO_3]
SMALL = ShardPlan(reduce_bucket_elements=1, prefetch_elements=0, persistent_elements=0, reuse_elements=0)


class _Writer:
    """Writes a tape event by event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kinds: dict[int, Kind] = {}
        self.phase = Phase.BUILD
        self.place: Place | None = None

    def new(self, size_bytes: int, kind: Kind) -> int:
        block = len(self.kinds)
        self.kinds[block] = kind
        self.events.append(Event(block, size_bytes, self.phase, self.place))
        return block

    def free(self, *blocks: int) -> None:
        self.events += [Event(block, 0, self.phase, self.place) for block in blocks]


def written(
    *,
    layers: int = 4,
    frozen_bytes: int = 8 * MIB,
    trained_bytes: int = 2 * MIB,
    outside_bytes: int = 4 * MIB,
    outside_trained: bool = False,
    passes: int = 1,
) -> Tape:
    """A step of layers with a frozen and a trained weight each, between an embedding and a head."""
    tape = _Writer()
    trained: list[tuple[Place | None, int]] = []
    outside = Kind.ADAPTER if outside_trained else Kind.BASE_WEIGHTS
    places = [Place("layers", number) for number in range(layers)]
    for place in (None, *places, None):
        tape.place = place
        if place is None:
            tape.new(outside_bytes, outside)
            trained += [(None, outside_bytes)] * outside_trained
            continue
        tape.new(frozen_bytes, Kind.BASE_WEIGHTS)
        if trained_bytes:
            tape.new(trained_bytes, Kind.ADAPTER)
            trained.append((place, trained_bytes))
    gradients: list[int] = []
    for number in range(passes):
        tape.phase = Phase.FORWARD
        kept = []
        for place in (None, *places, None):
            tape.place = place
            kept.append(tape.new(MIB, Kind.ACTIVATIONS))
        tape.phase = Phase.BACKWARD
        for place in (None, *reversed(places), None):
            tape.place = place
            tape.free(tape.new(MIB, Kind.TEMPORARIES), kept.pop())
            for owner, size in trained if place or not kept else []:
                if owner == place and number == 0:
                    gradients.append(tape.new(size, Kind.GRADIENTS))
                elif owner == place:
                    tape.free(tape.new(size, Kind.TEMPORARIES))
    tape.phase = Phase.OPTIMIZER
    for owner, size in trained:
        tape.place = owner
        tape.new(size, Kind.OPTIMIZER_STATE)
        tape.new(size, Kind.OPTIMIZER_STATE)
    copies = [tape.new(size, Kind.TEMPORARIES) for _, size in trained]
    tape.free(*copies, *gradients)
    tape.phase = Phase.EVALUATION
    for place in (None, *places, None):
        tape.place = place
        tape.free(tape.new(MIB, Kind.ACTIVATIONS))
    return Tape(tuple(tape.events), tape.kinds, {})


def plan_of(scheme: Scheme, ranks: int, **settings: object) -> ShardPlan:
    """A plan whose buckets are next to nothing."""
    return replace(SMALL, scheme=scheme, ranks=ranks, **settings)


def held(tape: Tape, until: Phase | None = Phase.BUILD) -> Counter[Kind]:
    """Bytes by kind at the end of the build, or of everything."""
    sizes: dict[int, int] = {}
    for event in steps_of(tape):
        if until is not None and event.phase is not until:
            break
        if event.size_bytes:
            sizes[event.block] = event.size_bytes
        else:
            del sizes[event.block]
    total: Counter[Kind] = Counter()
    offset = max(tape.kinds) + 1
    for block, size in sizes.items():
        total[tape.kinds[block % offset]] += size
    return total


def weights(tape: Tape) -> int:
    """Bytes of weights after the build."""
    own = held(tape)
    return own[Kind.BASE_WEIGHTS] + own[Kind.ADAPTER]


tapes = st.builds(
    written,
    layers=st.integers(1, 6),
    frozen_bytes=st.integers(512, 40_000).map(lambda number: 2 * number),
    trained_bytes=st.sampled_from([0, 1000, 70_002]),
    outside_bytes=st.integers(512, 40_000).map(lambda number: 2 * number),
    outside_trained=st.booleans(),
    passes=st.integers(1, 2),
)
settings = st.fixed_dictionaries(
    {
        "reduce_bucket_elements": st.sampled_from([1, 1000, 500_000]),
        "prefetch_elements": st.sampled_from([0, 5000]),
        "persistent_elements": st.sampled_from([0, 600]),
        "reuse_elements": st.sampled_from([0, 50_000, 10**9]),
        "sub_group_elements": st.sampled_from([1000, 10**9]),
        "overlap_comm": st.booleans(),
        "gathers_twice": st.booleans(),
        "recomputes_units": st.booleans(),
        "keeps_frozen": st.booleans(),
        "master_item_bytes": st.sampled_from([ITEM, MASTER]),
        "state_follows": st.booleans(),
    }
)


@given(tapes, st.sampled_from(EVERY), st.integers(1, 9), settings)
def test_every_tape_can_be_played(tape, scheme, ranks, chosen):
    rank = sharded(tape, ShardPlan(scheme=scheme, ranks=ranks, **chosen))
    replayed = replay((event.block, event.size_bytes) for event in steps_of(rank))
    assert replayed.final_allocated_bytes <= replayed.peak_allocated_bytes
    assert peaks_of(rank).peak_bytes >= sum(peaks_of(rank).breakdown.values()) > 0


@given(tapes, st.sampled_from(EVERY), st.integers(1, 4), settings)
def test_what_a_step_leaves_is_left_by_every_step(tape, scheme, ranks, chosen):
    once = sharded(tape, ShardPlan(scheme=scheme, ranks=ranks, **chosen))
    offset = max(once.kinds) + 1
    live: set[int] = set()
    for event in steps_of(once):
        (live.add if event.size_bytes else live.remove)(event.block)
    assert not [block for block in live if block >= offset]


@given(tapes, st.sampled_from([*ZERO, Scheme.FSDP]), st.integers(2, 8), settings)
def test_more_ranks_need_no_more(tape, scheme, ranks, chosen):
    few, many = (sharded(tape, ShardPlan(scheme=scheme, ranks=n, **chosen)) for n in (ranks, 2 * ranks))
    # What is gathered or flattened is padded to the ranks.
    blocks = sum(event.size_bytes > 0 for event in many.events)
    assert peaks_of(many).peak_bytes <= peaks_of(few).peak_bytes + blocks * 2 * ranks * MASTER + 512 * blocks
    assert weights(many) <= weights(few) + 2 * ranks * blocks
    assert held(many, None)[Kind.OPTIMIZER_STATE] <= held(few, None)[Kind.OPTIMIZER_STATE] + 4 * MASTER


@given(tapes, st.integers(2, 8))
def test_each_stage_has_no_more_of_the_weights_than_the_one_before(tape, ranks):
    ddp, one, two, three = (weights(sharded(tape, plan_of(scheme, ranks))) for scheme in (Scheme.DDP, *ZERO))
    assert three <= two <= one <= ddp
    assert ddp == weights(tape)


@given(tapes)
def test_one_rank_of_ddp_and_fsdp_is_the_tape(tape):
    for scheme in (Scheme.NONE, Scheme.DDP, Scheme.FSDP):
        assert sharded(tape, ShardPlan(scheme=scheme)) == tape


@given(tapes)
def test_one_rank_of_a_stage_has_all_weights_and_adds_masters(tape):
    trained = held(tape)[Kind.ADAPTER] // ITEM
    for scheme in ZERO:
        own = held(sharded(tape, plan_of(scheme, 1)))
        assert own[Kind.BASE_WEIGHTS] == held(tape)[Kind.BASE_WEIGHTS]
        assert own[Kind.ADAPTER] == held(tape)[Kind.ADAPTER]
        assert trained * MASTER <= own[Kind.OPTIMIZER_STATE] <= (trained + 1) * MASTER


def test_full_fine_tuning_under_fsdp_peaks_at_a_rank_s_share_of_five_copies():
    tape = written(layers=8, frozen_bytes=512, trained_bytes=64 * MIB)
    assert peaks_of(tape).by_phase[Phase.OPTIMIZER] == pytest.approx(5 * 512 * MIB, rel=0.02)
    for ranks, item in ((2, ITEM), (4, ITEM), (4, MASTER)):
        plan = plan_of(Scheme.FSDP, ranks, master_item_bytes=item)
        peak = peaks_of(sharded(tape, plan)).by_phase[Phase.OPTIMIZER]
        assert peak == pytest.approx(5 * 512 * MIB * item / ITEM / ranks, rel=0.02)


def test_ddp_has_buckets_for_all_gradients():
    tape = written(trained_bytes=20 * MIB)
    buckets = held(sharded(tape, plan_of(Scheme.DDP, 2)))[Kind.GRADIENTS]
    assert buckets == 4 * 20 * MIB
    sizes = [
        event.size_bytes
        for event in sharded(tape, plan_of(Scheme.DDP, 2)).events
        if event.phase is Phase.BUILD and event.size_bytes > 8 * MIB
    ]
    # The first is full with 1 MiB, the next with 25.
    assert [size // MIB for size in sizes if size >= 20 * MIB][-3:] == [20, 40, 20]


def test_stages_pad_what_they_divide():
    tape = written(layers=1, trained_bytes=10 * ITEM)
    plan = plan_of(Scheme.ZERO_2, 4)
    # 10 numbers for 4 ranks, 2 at a time: 4 each.
    assert held(sharded(tape, plan))[Kind.OPTIMIZER_STATE] == 4 * MASTER
    # Stage 3 pads to the ranks alone: 3 each.
    assert held(sharded(tape, replace(plan, scheme=Scheme.ZERO_3)))[Kind.OPTIMIZER_STATE] == 3 * MASTER


@pytest.mark.parametrize(("scheme", "copies"), [(Scheme.ZERO_1, 1), (Scheme.ZERO_2, 1)])
def test_a_bucket_is_whole_however_small_the_model(scheme, copies):
    tape = written()
    bucket = 100 * MIB
    plain, wide = (
        peaks_of(sharded(tape, plan_of(scheme, 2, reduce_bucket_elements=bucket // ITEM, overlap_comm=twice)))
        for twice in (False, True)
    )
    none = peaks_of(sharded(tape, plan_of(scheme, 2)))
    grown = plain.by_phase[Phase.BACKWARD] - none.by_phase[Phase.BACKWARD]
    # A bucket for one number takes a granule.
    assert bucket * copies - 512 <= grown <= bucket * copies + 4 * 2 * MIB
    assert wide.by_phase[Phase.BACKWARD] - plain.by_phase[Phase.BACKWARD] == bucket


def test_stage_1_keeps_gradients_whole_and_stage_2_does_not():
    tape = written(trained_bytes=50 * MIB)
    one, two = (
        peaks_of(sharded(tape, plan_of(scheme, 2))).by_phase[Phase.BACKWARD]
        for scheme in (Scheme.ZERO_1, Scheme.ZERO_2)
    )
    assert one - two >= 50 * MIB


@pytest.mark.parametrize("scheme", [Scheme.ZERO_3, Scheme.FSDP])
def test_layers_are_gathered_while_they_are_used(scheme):
    tape = written(layers=10, frozen_bytes=100 * MIB, trained_bytes=ITEM, outside_bytes=1024)
    rank = sharded(tape, plan_of(scheme, 4, gathers_twice=False))
    peaks = peaks_of(rank).by_phase
    parts = 10 * 25 * MIB
    assert peaks[Phase.FORWARD] == pytest.approx(
        parts + 100 * MIB * (2 if scheme is Scheme.ZERO_3 else 1), rel=0.1
    )
    # FSDP fetches the next while one is used; stage 3 puts together what it fetched.
    assert peaks[Phase.BACKWARD] == pytest.approx(parts + 200 * MIB, rel=0.1)
    assert peaks[Phase.OPTIMIZER] == pytest.approx(parts, rel=0.01)


def test_fsdp_1_keeps_embedding_and_head_and_fsdp_2_does_not():
    tape = written(layers=10, frozen_bytes=MIB, trained_bytes=ITEM, outside_bytes=100 * MIB)
    both, one = (
        peaks_of(sharded(tape, plan_of(Scheme.FSDP, 4, gathers_twice=twice))).by_phase[Phase.BACKWARD]
        for twice in (False, True)
    )
    assert both - one == pytest.approx(100 * MIB, abs=10 * MIB)


def test_what_is_used_again_soon_is_not_released():
    tape = written(layers=10, frozen_bytes=100 * MIB, trained_bytes=0)
    # From the last layer on, 8 MiB of head and 200 of each layer are read until a layer is used again.
    none, some = (
        peaks_of(sharded(tape, plan_of(Scheme.ZERO_3, 4, reuse_elements=reuse))).by_phase[Phase.BACKWARD]
        for reuse in (0, 900 * MIB // ITEM)
    )
    # One gathered and put together, against five.
    assert some - none == pytest.approx(300 * MIB, abs=10 * MIB)


def test_small_weights_persist():
    tape = written(frozen_bytes=MIB, outside_bytes=MIB)
    plan = plan_of(Scheme.ZERO_3, 2)
    persisting = replace(plan, persistent_elements=MIB // ITEM)
    assert weights(sharded(tape, persisting)) - weights(sharded(tape, plan)) == 6 * MIB


def test_four_bit_layers_stay_whole():
    tape = written(trained_bytes=0)
    plan = plan_of(Scheme.FSDP, 4, keeps_frozen=True)
    assert weights(sharded(tape, plan)) == 4 * 8 * MIB + 2 * MIB


@given(tapes, st.sampled_from([*ZERO, Scheme.FSDP]), st.integers(2, 8), settings)
def test_what_is_offloaded_is_on_the_host_instead(tape, scheme, ranks, chosen):
    near = ShardPlan(scheme=scheme, ranks=ranks, **chosen)
    far = replace(near, offload=Offload.ALL if scheme is Scheme.FSDP else Offload.OPTIMIZER)
    here, there = held(sharded(tape, near), None), held(sharded(tape, far), None)
    assert there[Kind.OPTIMIZER_STATE] == 0
    assert host_bytes(tape, near) == 0
    assert host_bytes(tape, far) >= here[Kind.OPTIMIZER_STATE]
    if scheme is Scheme.ZERO_3:
        all_of_it = replace(far, offload=Offload.ALL)
        assert host_bytes(tape, all_of_it) >= host_bytes(tape, far)
        assert weights(sharded(tape, all_of_it)) <= weights(sharded(tape, far))


def test_the_host_holds_masters_gradients_moments_and_weights():
    tape = written(trained_bytes=2 * MIB)
    numbers = 4 * MIB
    plan = plan_of(Scheme.ZERO_2, 2, offload=Offload.OPTIMIZER)
    # Masters, gradients, two moments; a copy of the weights; room for the largest gradient.
    assert host_bytes(tape, plan) == numbers // 2 * (4 * MASTER + ITEM) + 2 * MIB
    # Of several micro-batches the gradients add up there, too.
    again = written(trained_bytes=2 * MIB, passes=2)
    assert (accumulates(tape), accumulates(again)) == (False, True)
    assert host_bytes(again, plan) == host_bytes(tape, plan) + numbers // 2 * ITEM


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ranks": 0}, "ranks is 0"),
        ({"reduce_bucket_elements": 0}, "reduce_bucket_elements is 0"),
        ({"scheme": Scheme.DDP, "offload": Offload.OPTIMIZER}, "ddp cannot offload"),
        ({"scheme": Scheme.ZERO_2, "offload": Offload.ALL}, "zero-2 cannot offload"),
        ({"scheme": Scheme.FSDP, "offload": Offload.OPTIMIZER}, "fsdp cannot offload"),
    ],
)
def test_bad_plans_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        ShardPlan(**settings)


def handed_on(layers: int, *, weights_are: Kind) -> Tape:
    """A step in which layers hand on 1 MiB, and gradients of as much, each freed by the one that got it."""
    tape = _Writer()
    places = [Place("layers", number) for number in range(layers)]
    for place in places:
        tape.place = place
        tape.new(512, weights_are)
    tape.phase, tape.place = Phase.FORWARD, None
    inputs = [tape.new(MIB, Kind.ACTIVATIONS)]
    for place in places:
        tape.place = place
        inputs.append(tape.new(MIB, Kind.ACTIVATIONS))
    tape.phase = Phase.BACKWARD
    gradient = tape.new(MIB, Kind.TEMPORARIES)
    tape.free(inputs.pop())
    for place in reversed(places):
        tape.place = place
        following = tape.new(MIB, Kind.TEMPORARIES)
        tape.free(gradient, inputs.pop())
        gradient = following
    tape.place = None
    tape.free(gradient)
    tape.phase = Phase.OPTIMIZER
    tape.new(512, Kind.OPTIMIZER_STATE)
    return Tape(tuple(tape.events), tape.kinds, {})


def test_frozen_units_that_are_recomputed_keep_inputs_and_their_gradients():
    tape = handed_on(8, weights_are=Kind.BASE_WEIGHTS)
    plan = plan_of(Scheme.FSDP, 2, gathers_twice=False)
    free, kept = (
        round(peaks_of(sharded(tape, each)).by_phase[Phase.BACKWARD] / MIB)
        for each in (plan, replace(plan, recomputes_units=True))
    )
    # 8 inputs, the last output's gradient and the next; at the end the gradients of all inputs instead.
    assert (free, kept) == (10, 8 + 8)


@pytest.mark.parametrize(
    ("weights_are", "settings"),
    [(Kind.ADAPTER, {"gathers_twice": False}), (Kind.BASE_WEIGHTS, {"gathers_twice": True})],
)
def test_trained_units_and_fsdp_2_keep_nothing(weights_are, settings):
    tape = handed_on(8, weights_are=weights_are)
    plan = plan_of(Scheme.FSDP, 2, recomputes_units=True, **settings)
    assert round(peaks_of(sharded(tape, plan)).by_phase[Phase.BACKWARD] / MIB) == 10


def test_what_was_kept_is_freed_with_the_backward_pass():
    tape = handed_on(8, weights_are=Kind.BASE_WEIGHTS)
    plan = plan_of(Scheme.FSDP, 2, gathers_twice=False, recomputes_units=True)
    assert held(sharded(tape, plan), None)[Kind.ACTIVATIONS] == 0
    assert held(sharded(tape, plan), None)[Kind.TEMPORARIES] == 0


def test_recomputed_units_are_gathered_one_at_a_time():
    tape = written(layers=10, frozen_bytes=100 * MIB, trained_bytes=ITEM, outside_bytes=1024)
    plan = plan_of(Scheme.FSDP, 4, gathers_twice=False, recomputes_units=True)
    peak = peaks_of(sharded(tape, plan)).by_phase[Phase.BACKWARD]
    assert peak == pytest.approx((10 * 25 + 100) * MIB, rel=0.1)


@pytest.mark.parametrize("twice", [False, True])
def test_fsdp_has_whole_gradients_until_the_last_micro_batch(twice):
    one, two = (
        peaks_of(
            sharded(
                written(layers=8, frozen_bytes=512, trained_bytes=32 * MIB, passes=passes),
                plan_of(Scheme.FSDP, 4, gathers_twice=twice),
            )
        ).by_phase[Phase.BACKWARD]
        for passes in (1, 2)
    )
    assert two - one >= 4 * 32 * MIB


def test_units_of_frozen_and_trained_weights_have_gradients_for_both():
    tape = written(layers=8, frozen_bytes=64 * MIB, trained_bytes=2 * MIB, outside_bytes=1024, passes=2)
    apart, mixed = (
        peaks_of(sharded(tape, plan_of(Scheme.FSDP, 4, gathers_twice=False, mixes_units=mixes))).by_phase
        for mixes in (False, True)
    )
    assert mixed[Phase.BACKWARD] - apart[Phase.BACKWARD] >= 8 * 64 * MIB
    # A rank's part of them, in float32, until they are set to none.
    assert mixed[Phase.OPTIMIZER] - apart[Phase.OPTIMIZER] == pytest.approx(8 * 64 * MIB * 2 / 4, rel=0.02)
    again = plan_of(Scheme.FSDP, 4, gathers_twice=True, mixes_units=True)
    assert sharded(tape, again) == sharded(tape, replace(again, mixes_units=False))


def test_without_prefetching_fsdp_1_gathers_one_layer_at_a_time():
    tape = written(layers=10, frozen_bytes=100 * MIB, trained_bytes=ITEM, outside_bytes=1024)
    one, two = (
        peaks_of(sharded(tape, plan_of(Scheme.FSDP, 4, gathers_twice=False, fetches_ahead=ahead))).by_phase
        for ahead in (False, True)
    )
    assert two[Phase.BACKWARD] - one[Phase.BACKWARD] == pytest.approx(100 * MIB, rel=0.02)


@pytest.mark.parametrize("scheme", ZERO)
def test_what_the_optimizer_copies_is_one_tensor(scheme):
    # The written step copies all that is trained at once.
    tape = written(layers=4, frozen_bytes=512, trained_bytes=64 * MIB)
    rank = sharded(tape, plan_of(scheme, 4))
    copies = [
        event.size_bytes
        for event in rank.events
        if event.phase is Phase.OPTIMIZER and event.size_bytes and rank.kinds[event.block] is Kind.TEMPORARIES
    ]
    assert copies == [4 * 64 * MIB // ITEM * MASTER // 4]


def test_gradients_stay_until_the_last_group_is_updated():
    tape = written(layers=4, frozen_bytes=512, trained_bytes=64 * MIB)
    one, two = (
        peaks_of(sharded(tape, plan_of(Scheme.ZERO_2, 4, optimizer_groups=groups))).by_phase[Phase.OPTIMIZER]
        for groups in (1, 2)
    )
    assert two - one == pytest.approx(4 * 64 * MIB // 4, rel=0.01)


def test_stage_3_fetches_as_far_ahead_as_it_may():
    tape = written(layers=10, frozen_bytes=100 * MIB, trained_bytes=0, outside_bytes=1024)
    layer = 100 * MIB // ITEM
    peaks = [
        peaks_of(
            sharded(
                tape, plan_of(Scheme.ZERO_3, 4, prefetch_elements=layer // 10, live_elements=live * layer)
            )
        ).by_phase[Phase.FORWARD]
        for live in (1, 2, 4)
    ]
    assert 100 * MIB < peaks[2] - peaks[0] <= 300 * MIB
    assert peaks == sorted(peaks)


def test_buckets_are_allocated_whole_however_little_is_trained():
    plan = ShardPlan(ranks=2, scheme=Scheme.ZERO_2, reduce_bucket_elements=1000)
    assert unfilled_bytes(None, 10) == unfilled_bytes(replace(plan, scheme=Scheme.FSDP), 10) == 0
    assert unfilled_bytes(plan, 10) == 990 * ITEM
    assert unfilled_bytes(replace(plan, overlap_comm=True), 10) == 2 * 990 * ITEM
    assert unfilled_bytes(replace(plan, overlap_comm=True, scheme=Scheme.ZERO_3), 10) == 990 * ITEM
    assert unfilled_bytes(plan, 5000) == 0


def test_fsdp_1_gathers_a_unit_as_one_block_that_is_read_after_it_is_freed():
    tape = written(layers=3, frozen_bytes=8 * MIB, trained_bytes=2 * MIB, outside_bytes=4 * MIB)
    first, second = (sharded(tape, plan_of(Scheme.FSDP, 2, gathers_twice=twice)) for twice in (False, True))
    gathered = {event.size_bytes for event in first.events if first.streams.get(event.block) == 1}
    assert gathered - {0} == {10 * MIB, 4 * MIB}
    assert first.lagging == {1}
    assert not second.lagging
