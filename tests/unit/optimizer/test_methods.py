"""The registry is complete, and its arithmetic is what the papers and PEFT's documentation say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.optimizer.domain import Adapter, Method
from rankwise.optimizer.methods import METHODS, learning_rate, oft_block, rank_schedule
from rankwise.optimizer.priors import PUBLISHED


def test_every_method_has_an_entry_and_a_prior():
    assert METHODS.keys() == set(Method)
    assert {row.method for row in PUBLISHED} == {m for m in Method if not m.unfreezes}


@given(total_steps=st.integers(1, 100_000))
def test_ranks_are_pruned_within_the_training(total_steps):
    schedule = rank_schedule(total_steps)
    assert schedule["total_step"] == total_steps
    assert 0 <= schedule["tinit"] < total_steps - schedule["tfinal"], "PEFT's condition"
    assert 1 <= schedule["deltaT"] <= max(1, total_steps - schedule["tfinal"] - schedule["tinit"])


@given(in_features=st.integers(1, 500), wanted=st.integers(1, 600))
def test_an_oft_block_divides_the_input_and_none_is_nearer(in_features, wanted):
    block = oft_block(in_features, wanted)
    assert in_features % block == 0
    distance = abs(block - wanted)
    for size in range(max(1, wanted - distance + 1), wanted + distance):
        assert in_features % size != 0


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (Adapter(method=Method.LORA, rank=8), 8 * (64 + 128)),
        (Adapter(method=Method.LORA, rank=8, use_dora=True), 8 * (64 + 128) + 128),
        (Adapter(method=Method.LORA, rank=100), 100 * (64 + 128)),
        (Adapter(method=Method.LORA, rank=100, init_weights="pissa_niter_4"), 64 * (64 + 128)),
        (Adapter(method=Method.ADALORA, rank=8, initial_rank=12), 12 * (64 + 128 + 1)),
        (Adapter(method=Method.IA3), 128),
        (Adapter(method=Method.IA3, feedforward=("up",)), 64),
        (Adapter(method=Method.IA3, feedforward=("p",)), 128),
        (Adapter(method=Method.OFT, rank=16), 4 * (16 * 15 // 2)),
        (Adapter(method=Method.OFT, rank=1000), 64 * 63 // 2),
        (Adapter(method=Method.MISS, rank=16), 16 * 128),
    ],
)
def test_trainable_parameters_of_one_module(build, adapter, expected):
    module = build.module("mlp.up", "mlp_in", (64, 128))
    assert METHODS[adapter.method].trainable_on(adapter, module) == expected


def test_stacked_experts_have_an_adapter_each(build):
    module = build.module("mlp.experts.up", "mlp_in", (64, 128), "experts", 4)
    lora = Adapter(method=Method.LORA, rank=8)
    assert METHODS[Method.LORA].trainable_on(lora, module) == 4 * 8 * (64 + 128)


def test_narrow_models_take_higher_rates_and_full_fine_tuning_a_tenth():
    assert learning_rate(Method.LORA, 2000) == 5e-4
    assert learning_rate(Method.LORA, 384) > learning_rate(Method.LORA, 4096)
    assert learning_rate(Method.LORA, 768) == pytest.approx(10 * learning_rate(Method.FULL, 768))
    assert learning_rate(Method.IA3, None) > 0
