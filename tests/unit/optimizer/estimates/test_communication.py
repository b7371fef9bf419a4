"""Bytes that ranks send, worked out by hand, and the time that links take for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.optimizer.estimates.communication import (
    GPUS_A_NODE,
    NO_TRAFFIC,
    NVLINK_BYTES_PER_S,
    PCIE_GENERATIONS,
    Traffic,
    rates_between,
    rates_to_host,
    time_of,
    traffic_of,
    with_communication,
)
from rankwise.optimizer.estimates.gpus import CATALOGUE, find_gpu
from rankwise.optimizer.estimates.shard_plan import Offload, Scheme, ShardPlan
from rankwise.optimizer.estimates.speed import SpeedEstimate
from rankwise.optimizer.estimates.tape import Event, Kind, Phase, Place, Tape

LAYERS, FROZEN, TRAINED, OUTSIDE = 4, 1000, 100, 600
"""Layers; bytes of the frozen and the trained weight of each, and of embedding and head, which are frozen."""
ALL_TRAINED = LAYERS * TRAINED
SMALL = ShardPlan(reduce_bucket_elements=1, prefetch_elements=0, persistent_elements=0, reuse_elements=0)
A100, H100, RTX = find_gpu("A100-80GB"), find_gpu("H100"), find_gpu("4090")


def tape_of(passes: int = 1) -> Tape:
    """A step that allocates next to nothing but weights."""
    places = [Place("layers", number) for number in range(LAYERS)]
    events: list[Event] = []
    kinds: dict[int, Kind] = {}

    def new(size: int, kind: Kind, phase: Phase, place: Place | None) -> None:
        kinds[len(kinds)] = kind
        events.append(Event(len(kinds) - 1, size, phase, place))

    new(OUTSIDE, Kind.BASE_WEIGHTS, Phase.BUILD, None)
    for place in places:
        new(FROZEN, Kind.BASE_WEIGHTS, Phase.BUILD, place)
        new(TRAINED, Kind.ADAPTER, Phase.BUILD, place)
    new(OUTSIDE, Kind.BASE_WEIGHTS, Phase.BUILD, None)
    for _ in range(passes):
        for place in places:
            new(10, Kind.ACTIVATIONS, Phase.FORWARD, place)
        for place in reversed(places):
            new(10, Kind.TEMPORARIES, Phase.BACKWARD, place)
    new(10, Kind.TEMPORARIES, Phase.OPTIMIZER, None)
    return Tape(tuple(events), kinds, {})


def plan_of(scheme: Scheme, ranks: int = 4, **settings: object) -> ShardPlan:
    return replace(SMALL, scheme=scheme, ranks=ranks, **settings)


OF_LAYERS = LAYERS * (FROZEN + TRAINED)
GATHERED = 2 * OF_LAYERS + 2 * OUTSIDE
"""By a micro-batch: layers for both passes, what is outside of them once."""


@pytest.mark.parametrize(
    ("scheme", "passes", "whole_bytes"),
    [
        (Scheme.DDP, 1, 2 * ALL_TRAINED),
        (Scheme.DDP, 2, 2 * ALL_TRAINED),  # no_sync
        (Scheme.ZERO_1, 2, 2 * ALL_TRAINED + ALL_TRAINED),
        (Scheme.ZERO_2, 1, 2 * ALL_TRAINED + ALL_TRAINED),
        (Scheme.ZERO_2, 2, 2 * 2 * ALL_TRAINED + ALL_TRAINED),
        (Scheme.ZERO_3, 1, GATHERED + ALL_TRAINED),
        (Scheme.ZERO_3, 2, 2 * (GATHERED + ALL_TRAINED)),
        (Scheme.FSDP, 1, GATHERED + ALL_TRAINED),
        (Scheme.FSDP, 2, 2 * GATHERED + ALL_TRAINED),
    ],
)
def test_bytes_are_those_of_rings(scheme: Scheme, passes: int, whole_bytes: int) -> None:
    found = traffic_of(tape_of(passes), plan_of(scheme))
    assert found == Traffic(between_ranks=whole_bytes * 3 // 4)


def test_a_rank_alone_sends_nothing() -> None:
    assert traffic_of(tape_of(), None) == NO_TRAFFIC
    for scheme in (Scheme.DDP, Scheme.ZERO_2, Scheme.ZERO_3, Scheme.FSDP):
        assert traffic_of(tape_of(), plan_of(scheme, 1)) == NO_TRAFFIC


def test_what_stays_gathered_is_gathered_once() -> None:
    plan = plan_of(Scheme.ZERO_3, reuse_elements=10**9)
    found = traffic_of(tape_of(), plan)
    assert found.between_ranks == (OF_LAYERS + 2 * OUTSIDE + ALL_TRAINED) * 3 // 4


def test_small_weights_are_gathered_when_they_were_updated() -> None:
    # All weights of 50 numbers: those that are trained.
    found = traffic_of(tape_of(), plan_of(Scheme.ZERO_3, persistent_elements=50))
    frozen = 2 * LAYERS * FROZEN + 2 * OUTSIDE
    assert found.between_ranks == (frozen + ALL_TRAINED + ALL_TRAINED) * 3 // 4


def test_units_that_are_recomputed_with_their_hooks_are_gathered_three_times() -> None:
    plan = plan_of(Scheme.FSDP, gathers_twice=False)
    once, again = (
        traffic_of(tape_of(), replace(plan, recomputes_units=recomputes)).between_ranks
        for recomputes in (False, True)
    )
    assert again - once == OF_LAYERS * 3 // 4


@pytest.mark.parametrize(
    ("scheme", "offload", "passes", "host_bytes"),
    [
        # A rank's gradients there, and its weights back.
        (Scheme.ZERO_2, Offload.OPTIMIZER, 1, 2 * ALL_TRAINED // 4),
        # The first micro-batch's go there and come back, to be added to.
        (Scheme.ZERO_2, Offload.OPTIMIZER, 2, 4 * ALL_TRAINED // 4),
        (Scheme.ZERO_3, Offload.OPTIMIZER, 1, 2 * ALL_TRAINED // 4),
        (Scheme.ZERO_3, Offload.ALL, 1, (ALL_TRAINED + GATHERED) // 4),
        (Scheme.FSDP, Offload.ALL, 2, (ALL_TRAINED + 2 * GATHERED) // 4),
    ],
)
def test_offloading_goes_over_the_bus(scheme: Scheme, offload: Offload, passes: int, host_bytes: int) -> None:
    assert traffic_of(tape_of(passes), plan_of(scheme, offload=offload)).with_host == host_bytes


@given(st.sampled_from([s for s in Scheme if s is not Scheme.NONE]), st.integers(1, 16), st.integers(1, 3))
def test_more_ranks_never_send_less_between_each_other(scheme: Scheme, ranks: int, passes: int) -> None:
    few, many = (
        traffic_of(tape_of(passes), plan_of(scheme, number)).between_ranks for number in (ranks, 2 * ranks)
    )
    assert few <= many


@given(st.integers(2, 16))
def test_dividing_weights_sends_more_than_dividing_states(ranks: int) -> None:
    copies, states, weights = (
        traffic_of(tape_of(), plan_of(scheme, ranks)).between_ranks
        for scheme in (Scheme.DDP, Scheme.ZERO_1, Scheme.ZERO_3)
    )
    assert copies <= states <= weights


def test_links_are_as_fast_as_boards_have_them() -> None:
    assert rates_between(A100, 8).high == pytest.approx(0.82 * 300e9)
    assert rates_between(H100, 2).low > rates_between(A100, 2).low > rates_between(RTX, 2).high
    assert rates_to_host(H100).high == pytest.approx(2 * rates_to_host(A100).high)
    assert rates_between(A100, GPUS_A_NODE + 1).low == 12.5e9
    assert rates_between(RTX, GPUS_A_NODE + 1).high == rates_between(RTX, 2).high


def test_tables_name_what_the_catalogue_has() -> None:
    assert NVLINK_BYTES_PER_S.keys() <= {gpu.name for gpu in CATALOGUE}
    assert PCIE_GENERATIONS.keys() <= {gpu.architecture for gpu in CATALOGUE}
    for gpu in CATALOGUE:
        for rates in (rates_between(gpu, 2), rates_to_host(gpu)):
            assert 0 < rates.low < rates.high


def test_time_is_that_of_both_ways() -> None:
    found = time_of(Traffic(between_ranks=10**9, with_host=10**9), A100, 8)
    between, host = rates_between(A100, 8), rates_to_host(A100)
    assert found.low_s == pytest.approx(1e9 / between.high + 1e9 / host.high)
    assert found.high_s == pytest.approx(1e9 / between.low + 1e9 / host.low)
    assert found.low_s < found.mid_s < found.high_s


SPEED = SpeedEstimate(tokens_per_s_low=800.0, tokens_per_s_mid=1000.0, tokens_per_s_high=1250.0, step_s=1.0)


def test_nothing_to_say_costs_nothing() -> None:
    found = with_communication(SPEED, 1000.0, time_of(NO_TRAFFIC, A100, 1))
    assert found == SPEED


def test_at_best_all_is_hidden_and_at_worst_nothing() -> None:
    talking = time_of(Traffic(between_ranks=round(0.5 * 300e9 * 0.75)), A100, 2)
    found = with_communication(SPEED, 1000.0, talking)
    assert found.tokens_per_s_high == SPEED.tokens_per_s_high
    assert found.tokens_per_s_low == pytest.approx(1000 / (1000 / 800 + talking.high_s))
    assert found.tokens_per_s_mid == pytest.approx(1000 / (1 + talking.mid_s / 2))
    assert found.step_s == pytest.approx(1 + talking.mid_s / 2)


@given(st.integers(0, 10**13), st.integers(0, 10**13))
def test_more_to_send_is_never_faster(few: int, more: int) -> None:
    less, much = (
        with_communication(SPEED, 1000.0, time_of(Traffic(between_ranks=size), RTX, 4))
        for size in (few, few + more)
    )
    for name in ("tokens_per_s_low", "tokens_per_s_mid", "tokens_per_s_high"):
        assert getattr(much, name) <= getattr(less, name) * (1 + 1e-12)
    assert much.tokens_per_s_low <= much.tokens_per_s_mid * (1 + 1e-12)
    assert much.tokens_per_s_mid <= much.tokens_per_s_high * (1 + 1e-12)
