"""From a level to how it divides the model: one way, for studies and for questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.estimates.shard_plan import (
    Offload,
    Scheme,
    ShardPlan,
    as_run,
    has_autocast,
    plan_of,
)

MIXED = Level(weight_dtype="float32", compute_dtype="bfloat16", adapter_dtype="float32")
LORA = Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("q_proj",))


def of(level: Level, adapter: Adapter = LORA) -> ShardPlan | None:
    """The plan of a candidate at this level."""
    recipe = Recipe(max_length=128, effective_batch=4)
    return plan_of(Candidate(adapter=adapter, level=level, recipe=recipe, micro_batch=1, learning_rate=1e-4))


HALF = Level(weight_dtype="bfloat16", compute_dtype="bfloat16", adapter_dtype="bfloat16")


@pytest.mark.parametrize(
    ("settings", "scheme", "ranks"),
    [
        ({}, None, 1),
        ({"processes": 2}, Scheme.DDP, 2),
        ({"zero_stage": 1, "processes": 2}, Scheme.ZERO_1, 2),
        ({"zero_stage": 2}, Scheme.ZERO_2, 1),
        ({"zero_stage": 3, "processes": 4}, Scheme.ZERO_3, 4),
        ({"fsdp": 1, "processes": 2}, Scheme.FSDP, 2),
        ({"fsdp": 2, "processes": 2}, Scheme.FSDP, 2),
    ],
)
def test_a_level_says_what_is_divided(settings, scheme, ranks) -> None:
    plan = of(replace(MIXED, **settings))
    if scheme is None:
        assert plan is None
        return
    assert (plan.scheme, plan.ranks, plan.offload) == (scheme, ranks, Offload.NONE)
    assert plan.gathers_twice is (settings.get("fsdp") != 1)


def test_what_the_library_is_not_told_has_its_defaults() -> None:
    plan, defaults = of(replace(HALF, zero_stage=3, processes=2)), ShardPlan()
    for name in ("reduce_bucket_elements", "prefetch_elements", "persistent_elements", "live_elements"):
        assert getattr(plan, name) == getattr(defaults, name)


@pytest.mark.parametrize("settings", [{"zero_stage": 1}, {"zero_stage": 3}, {"fsdp": 1}, {"fsdp": 2}])
def test_what_is_divided_is_computed_in_one_dtype(settings) -> None:
    level = replace(MIXED, processes=2, **settings)
    run, plan = as_run(level), of(level)
    assert run == replace(level, weight_dtype="bfloat16", adapter_dtype="bfloat16")
    assert (plan.trained_item_bytes, plan.frozen_item_bytes) == (2, 2)
    # FSDP keeps what was loaded and gathers what is computed in; DeepSpeed casts once, and keeps masters.
    assert (plan.master_item_bytes, plan.frozen_shard_item_bytes) == (4, 4)
    assert has_autocast(level) is ("fsdp" in settings)


def test_copies_are_computed_as_by_one_process() -> None:
    level = replace(MIXED, processes=2)
    assert as_run(level) == level
    assert has_autocast(level)
    assert of(level).trained_item_bytes == 4


def test_without_mixed_precision_no_master_is_wider() -> None:
    plan = of(replace(HALF, fsdp=2, processes=2))
    assert (plan.master_item_bytes, plan.frozen_shard_item_bytes) == (2, 2)


def test_quantized_weights_are_not_divided_and_eight_bits_stay_eight() -> None:
    level = replace(MIXED, quantization=Quantization.NF4, optimizer="adamw_8bit", fsdp=2, processes=2)
    plan = of(level)
    assert plan.keeps_frozen
    assert not plan.state_follows


def test_what_no_library_offloads_is_refused() -> None:
    with pytest.raises(InputError, match="zero-2 cannot offload"):
        of(replace(MIXED, zero_stage=2, processes=2, offload="all"))


def test_norms_and_biases_are_a_group_of_their_own() -> None:
    level = replace(MIXED, zero_stage=2, processes=2)
    assert of(level).optimizer_groups == 1
    assert of(level, Adapter(method=Method.FULL)).optimizer_groups == 2
