"""Which ways of spreading a training are proposed, for which machines and sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.errors import NothingFits
from rankwise.optimizer.domain import Level, Method, Quantization
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.sizes import frozen_bytes, host_bytes, trained_bytes

GIB = 2**30
LIBRARIES = ("bitsandbytes", "deepspeed")
FSDP = ["FSDP1", "FSDP2"]


def big(build, billions: float):
    """A model of linear layers with so many parameters."""
    side = int((billions * 1e9 / 6) ** 0.5)
    roles = ("query", "key", "value", "attention_output", "mlp_in", "mlp_out")
    return build.model([build.module(f"layers.0.{role}", role, (side, side)) for role in roles])


def machine(build, gpus: int, host_gib: int = 64, **options):
    hardware = build.hardware(gpus=gpus, libraries=LIBRARIES, **options)
    return replace(hardware, host=replace(hardware.host, ram_available_bytes=host_gib * GIB))


def proposed(build, billions, gpus, method=Method.LORA, host_gib=64, **asked):
    """Ways to spread the first adapter, in their order, and what each offloads."""
    facts = build.facts(model=big(build, billions), hardware=machine(build, gpus, host_gib))
    options = {"methods": (method,), "quantizations": (Quantization.NONE,), **asked}
    found = enumerate_candidates(facts, build.request(**options))
    levels = [candidate.level for candidate in found if candidate.adapter == found[0].adapter]
    shown = (f"{each.sharding}{'' if each.offload == 'none' else f'+{each.offload}'}" for each in levels)
    return [way for way in dict.fromkeys(shown) if way]


@pytest.mark.parametrize(
    ("billions", "gpus", "method", "ways"),
    [
        # On GPUs of 24 GiB. It fits one: nothing is spread with one, and with two DDP and one rung beyond.
        (1, 1, Method.LORA, []),
        (1, 2, Method.LORA, ["DDP", "ZeRO-3", *FSDP]),
        (0.5, 2, Method.FULL, ["DDP", "ZeRO-1"]),
        # It fits one without room for activations.
        (8, 2, Method.LORA, ["DDP", "ZeRO-3", *FSDP]),
        # It fits two together: ZeRO-1 and -2 keep frozen weights whole, and FSDP1 has them in float32.
        (18, 2, Method.LORA, ["ZeRO-3", "FSDP2", "ZeRO-3+all"]),
        (2, 4, Method.FULL, ["ZeRO-1", "ZeRO-2", "ZeRO-3", *FSDP]),
        # What is offloaded comes before what divides more, and is no measure for that.
        (4, 4, Method.FULL, ["ZeRO-2", "ZeRO-2+optimizer", "ZeRO-3", *FSDP]),
        # It fits none of them without the host.
        (3.5, 1, Method.FULL, ["ZeRO-2+optimizer"]),
        (18, 1, Method.LORA, ["ZeRO-3+all"]),
    ],
)
def test_the_mildest_that_fits_and_one_rung_beyond(build, billions, gpus, method, ways):
    assert proposed(build, billions, gpus, method) == ways


def test_the_host_must_hold_what_all_processes_offload(build):
    assert proposed(build, 3.5, 2, Method.FULL, host_gib=54) == ["ZeRO-2+optimizer"]
    with pytest.raises(NothingFits, match="which is too much divided among 2 processes too"):
        proposed(build, 3.5, 2, Method.FULL, host_gib=50)


def test_quantized_weights_are_divided_where_unquantized_ones_do_not_fit(build):
    asked = {"quantizations": (Quantization.NONE, Quantization.NF4), "host_gib": 1}
    assert proposed(build, 30, 2, **asked) == ["DDP", "ZeRO-3"]
    assert proposed(build, 60, 2, **asked) == ["ZeRO-3"]


def test_one_process_is_asked_for_and_nothing_is_spread(build):
    assert proposed(build, 1, 2, processes=1) == []


def test_processes_on_a_cpu_share_its_memory(build):
    assert proposed(build, 1, 0, processes=2) == ["DDP", "ZeRO-3"]
    assert proposed(build, 1, 0) == []
    # 16 GiB hold 2.5e9 float32 weights once, not twice.
    assert proposed(build, 2.5, 0, processes=2) == ["ZeRO-3"]


def test_deepspeed_computes_and_stores_in_one_dtype(build):
    facts = build.facts(model=big(build, 1), hardware=machine(build, 2))
    for hardware, dtype in ((facts.hardware, "bfloat16"), (machine(build, 2, capability=(7, 5)), "float16")):
        found = enumerate_candidates(replace(facts, hardware=hardware), build.request(methods=(Method.FULL,)))
        zero = {candidate.level for candidate in found if candidate.level.zero_stage}
        assert zero
        for level in zero:
            assert {level.weight_dtype, level.compute_dtype, level.adapter_dtype} == {dtype}
        assert all(c.accumulation * c.micro_batch * c.level.processes == 16 for c in found)


@pytest.mark.parametrize(
    ("level", "trained", "frozen"),
    [
        # Of 1,000 trained and 1,000,000 frozen parameters, on 4 processes.
        (Level(), 16_000, 4_000_000),
        ({}, 16_000, 4_000_000),
        ({"fsdp": 1}, 4_000, 1_000_000),
        ({"zero_stage": 1}, 2_000 + 2_000 + 12_000 // 4, 2_000_000),
        ({"zero_stage": 2}, 2_000 + 2_000 // 4 + 12_000 // 4, 2_000_000),
        ({"zero_stage": 2, "offload": "optimizer"}, 2_000, 2_000_000),
        ({"zero_stage": 3}, 16_000 // 4, 500_000),
        ({"zero_stage": 3, "offload": "optimizer"}, 2_000 // 4, 500_000),
        ({"zero_stage": 3, "offload": "all"}, 0, 0),
        ({"zero_stage": 3, "quantization": Quantization.NF4}, 4_000, 125_000 + 62_500),
    ],
)
def test_each_process_holds_its_part(build, level, trained, frozen):
    if isinstance(level, dict):
        half = {"weight_dtype": "bfloat16", "compute_dtype": "bfloat16", "adapter_dtype": "bfloat16"}
        level = Level(processes=4, **level, **(half if level.get("zero_stage") else {}))
    model = replace(
        build.model([replace(build.module("layer", "query", (1000, 1000)), parameters=10**6)]),
        parameters=10**6,
    )
    assert (trained_bytes(level, 1000), frozen_bytes(level, model, ())) == (trained, frozen)


def test_what_is_offloaded_is_on_the_host_once():
    half = Level(weight_dtype="bfloat16", processes=4, zero_stage=3)
    assert host_bytes(half, 1000, 2_000_000) == 0
    assert host_bytes(replace(half, offload="optimizer"), 1000, 2_000_000) == 16_000
    assert host_bytes(replace(half, offload="all"), 1000, 2_000_000) == 16_000 + 2_000 + 2_000_000
