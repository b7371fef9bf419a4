"""Keys are stable, tell apart what differs, and edges report everything that is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import InputError
from rankwise.optimizer.codec import canonical_json, from_json, from_text, identity, to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Measurement, Method, Recipe
from rankwise.optimizer.keys import derive_seed, environment_key, measurement_key

CANDIDATE = Candidate(
    adapter=Adapter(method=Method.LORA, rank=16, alpha=32, dropout=0.1, targets=("q", "v")),
    level=Level(),
    recipe=Recipe(max_length=128),
    micro_batch=4,
    learning_rate=2e-4,
)


def test_candidate_id_is_golden():
    assert CANDIDATE.id == "34c151b1528722266366ba5cfa94e4d1223850d6dc22ea0247b712d2472b5bcc"


def test_int_and_float_alpha_are_the_same_candidate():
    as_float = replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, alpha=32.0))
    as_int = replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, alpha=32))
    assert as_float.id == as_int.id
    assert from_json(Candidate, to_json(as_int)).id == as_int.id


def test_target_set_name_is_no_part_of_the_identity():
    named = replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, target_set="minimal"))
    assert (named.id, named.shape_key) == (CANDIDATE.id, CANDIDATE.shape_key)


@pytest.mark.parametrize(
    "other",
    [
        replace(CANDIDATE, learning_rate=1e-3),
        replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, alpha=8.0)),
        replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, dropout=0.2)),
        replace(CANDIDATE, recipe=replace(CANDIDATE.recipe, schedule="cosine", warmup_ratio=0.1)),
        replace(CANDIDATE, recipe=replace(CANDIDATE.recipe, epochs=1.0)),
    ],
    ids=["rate", "alpha", "amount of dropout", "schedule", "epochs"],
)
def test_shape_key_leaves_out_what_cannot_change_memory_or_speed(other):
    assert other.id != CANDIDATE.id
    assert other.shape_key == CANDIDATE.shape_key


@pytest.mark.parametrize(
    "other",
    [
        replace(CANDIDATE, micro_batch=8),
        replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, rank=8)),
        replace(CANDIDATE, adapter=replace(CANDIDATE.adapter, dropout=0.0)),
        replace(CANDIDATE, level=replace(CANDIDATE.level, gradient_checkpointing=True)),
        replace(CANDIDATE, recipe=replace(CANDIDATE.recipe, max_length=256)),
    ],
    ids=["micro-batch", "rank", "no dropout", "checkpointing", "length"],
)
def test_shape_key_tells_apart_what_changes_memory_or_speed(other):
    assert other.shape_key != CANDIDATE.shape_key


def test_a_text_is_read_as_its_data_are():
    candidate = Candidate(
        adapter=Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("q", "v")),
        level=Level(gradient_checkpointing=True),
        recipe=Recipe(max_length=128),
        micro_batch=4,
        learning_rate=1e-4,
    )
    assert from_text(Candidate, canonical_json(to_json(candidate))) == candidate
    with pytest.raises(InputError, match=r"max_length.*effective_batch"):
        from_text(Recipe, '{"max_length": "long", "effective_batch": "many", "epochs": 1.0}')
    with pytest.raises(InputError, match="not a valid Recipe"):
        from_text(Recipe, '{"max_length"')


def test_from_json_reports_every_error():
    with pytest.raises(InputError) as caught:
        from_json(Recipe, {"max_length": "long", "effective_batch": "many", "epochs": 1.0})
    assert "max_length" in caught.value.message
    assert "'many'" in caught.value.message


@given(
    rank=st.integers(1, 512),
    alpha=st.floats(0.1, 1e3),
    rate=st.floats(1e-7, 1.0),
    targets=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    checkpointing=st.booleans(),
)
def test_candidates_survive_json(rank, alpha, rate, targets, checkpointing):
    candidate = replace(
        CANDIDATE,
        adapter=replace(CANDIDATE.adapter, rank=rank, alpha=alpha, targets=targets),
        level=replace(CANDIDATE.level, gradient_checkpointing=checkpointing),
        learning_rate=rate,
    )
    copy = from_json(Candidate, to_json(candidate))
    assert copy == candidate
    assert copy.id == candidate.id


def test_canonical_json_is_independent_of_order_and_refuses_nan():
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"loss": math.nan})


def test_seeds_are_stable_and_differ_by_purpose_and_replicate():
    assert derive_seed(0, "order") == derive_seed(0, "order", 0)
    seeds = {derive_seed(seed, what, n) for seed in (0, 1) for what in ("order", "model") for n in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(0, "order") == 1697796720


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, None),
        ({"peak_tensor_bytes": 1}, None),
        ({"peak_tensor_bytes": 1, "peak_process_bytes": 2}, 2),
        ({"peak_process_bytes": 2, "peak_reserved_bytes": 3}, 3),
        ({"peak_process_bytes": 2, "peak_reserved_bytes": 3, "peak_device_bytes": 4}, 4),
    ],
)
def test_memory_is_the_devices_where_there_is_one(columns, expected):
    assert Measurement(**columns).memory_bytes == expected


@pytest.mark.parametrize(("micro_batch", "expected"), [(16, 1), (4, 4), (5, 4)])
def test_accumulation_fills_the_effective_batch(micro_batch, expected):
    assert replace(CANDIDATE, micro_batch=micro_batch).accumulation == expected


def test_environment_key_ignores_what_changes_from_minute_to_minute(build):
    hardware = build.hardware()
    other_host = replace(hardware, host=replace(hardware.host, ram_available_bytes=1))
    assert environment_key(hardware) == environment_key(other_host)
    assert environment_key(hardware) != environment_key(build.hardware(gpus=1))


def test_measurement_key_follows_shape_and_structure(build):
    facts = build.facts()
    key = measurement_key(facts, CANDIDATE)
    assert measurement_key(facts, replace(CANDIDATE, learning_rate=1.0)) == key
    assert measurement_key(facts, replace(CANDIDATE, micro_batch=1)) != key
    other_model = replace(facts.model, structure_sha256="1" * 64)
    assert measurement_key(replace(facts, model=other_model), CANDIDATE) != key


def test_descriptions_are_short_and_human():
    assert CANDIDATE.describe() == "float32 + LORA r=16 α=32 q,v, batch 4×4, lr 0.0002"
    mixed = Level(compute_dtype="bfloat16", gradient_checkpointing=True)
    assert mixed.describe() == "GradCP + AMP bfloat16"
    assert Adapter(method=Method.FULL).describe() == "full fine-tuning"
    assert Adapter(method=Method.IA3, targets=("k", "v")).describe() == "IA3 k,v"


def test_levels_of_several_processes_say_so():
    candidate = replace(CANDIDATE, level=Level(zero_stage=2, offload="optimizer", processes=2), micro_batch=2)
    assert candidate.accumulation == 4
    assert candidate.describe().startswith("float32 + ZeRO-2 on 2 + optimizer offloaded + ")
    assert "batch 2×4×2," in candidate.describe()
    assert Level(processes=2).describe() == "float32 + DDP on 2"
    assert Level(fsdp=2, processes=4).describe() == "float32 + FSDP2 on 4"


def test_fields_that_came_later_count_only_where_they_differ():
    assert "processes" not in identity(Level())
    assert identity(Level(processes=2))["processes"] == 2
    assert replace(CANDIDATE, level=Level(processes=2)).shape_key != CANDIDATE.shape_key
