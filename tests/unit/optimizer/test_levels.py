"""Candidates are valid, distinct, ordered by prior, and their suffixes match what PEFT would."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import InputError, NothingFits
from rankwise.optimizer.domain import Method, Recipe
from rankwise.optimizer.levels import (
    adapted_modules,
    device_bytes,
    enumerate_candidates,
    estimated_trainable,
    least_bytes,
    micro_batches,
    suffixes_for,
)
from rankwise.optimizer.priors import prior_quality

GIB = 2**30
NAMES = st.lists(st.sampled_from(["a", "b", "output", "dense", "0", "10"]), min_size=1, max_size=4).map(
    ".".join
)


def adapters_of(candidates):
    return list(dict.fromkeys(candidate.adapter for candidate in candidates))


def matches(name: str, target: str) -> bool:
    """PEFT's rule."""
    return name == target or name.endswith("." + target)


@given(names=st.sets(NAMES, min_size=1, max_size=12), data=st.data())
def test_suffixes_match_all_wanted_and_no_other(names, data):
    wanted = data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1))
    suffixes = suffixes_for(wanted, names)
    if suffixes is None:
        assert any(matches(other, name) for name in wanted for other in names - wanted)
        return
    assert {name for name in names if any(matches(name, target) for target in suffixes)} == wanted
    for target in suffixes:
        without = [other for other in suffixes if other != target]
        assert any(not any(matches(name, other) for other in without) for name in wanted)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"layer.0.output.dense", "layer.0.attention.output.dense"}, ("output.dense",)),
        ({"layer.0.attention.output.dense"}, ("attention.output.dense",)),
        ({"layer.0.output.dense"}, ("0.output.dense",)),
        ({"layer.0.intermediate.dense", "pooler.dense"}, ("intermediate.dense", "pooler.dense")),
        ({"dense"}, None),
    ],
)
def test_suffixes_grow_until_they_tell_apart(wanted, expected):
    names = {
        "layer.0.attention.output.dense",
        "layer.0.output.dense",
        "layer.0.intermediate.dense",
        "pooler.dense",
        "dense",
    }
    assert suffixes_for(wanted, names) == expected


def test_bert_gets_the_adapters_that_were_meant(build):
    model = build.bert(layers=11)
    facts = build.facts(model=model)
    adapters = {
        (a.method, a.rank, a.target_set): a for a in adapters_of(enumerate_candidates(facts, build.request()))
    }
    assert adapters.keys() == {
        (Method.LORA, 8, "minimal"),
        (Method.LORA, 16, "minimal"),
        (Method.LORA, 16, "balanced"),
        (Method.LORA, 32, "balanced"),
        (Method.LORA, 16, "full"),
        (Method.IA3, None, "key,value,mlp_out"),
        (Method.FULL, None, "custom"),
    }
    assert adapters[Method.LORA, 8, "minimal"].targets == ("query", "value")
    balanced = adapters[Method.LORA, 16, "balanced"]
    assert balanced.targets == ("attention.output.dense", "key", "query", "value")
    assert balanced.trained_modules == ("classifier",)
    assert (balanced.alpha, balanced.dropout) == (32.0, 0.1)
    assert adapters[Method.LORA, 16, "full"].targets == ("dense", "key", "query", "value")
    ia3 = adapters[Method.IA3, None, "key,value,mlp_out"]
    assert set(ia3.targets) == {"key", "value", *ia3.feedforward}
    assert {m.role for m in adapted_modules(ia3, model)} == {"key", "value", "mlp_out"}
    assert adapters[Method.FULL, None, "custom"].trained_modules == ()


def test_a_fused_matrix_stands_for_query_key_and_value(build):
    facts = build.facts(model=build.gpt2())
    targets = {
        (a.method, a.target_set): a.targets for a in adapters_of(enumerate_candidates(facts, build.request()))
    }
    assert targets[Method.LORA, "minimal"] == ("c_attn",)
    assert targets[Method.LORA, "balanced"] == ("attn.c_proj", "c_attn")
    assert targets[Method.LORA, "full"] == ("c_attn", "c_fc", "c_proj")
    assert targets[Method.IA3, "key,value,mlp_out"] == ("c_attn", "mlp.c_proj")


def test_missing_roles_fall_back_to_all_linear_layers(build):
    model = build.model([build.module(f"mixer.{n}.fc{m}", "other", (64, 64)) for n in (0, 1) for m in (1, 2)])
    adapters = adapters_of(enumerate_candidates(build.facts(model=model), build.request()))
    assert {(a.method, a.rank, a.targets) for a in adapters if a.method is not Method.FULL} == {
        *((Method.LORA, rank, ("fc1", "fc2")) for rank in (8, 16, 32)),
        (Method.IA3, None, ("fc1", "fc2")),
    }
    assert all(a.feedforward == () for a in adapters)


def test_heads_and_new_modules_get_no_adapter(build):
    modules = [
        build.module("body.query", "query", (64, 64)),
        build.module("body.value", "value", (64, 64)),
        build.module("body.pooler.dense", "other", (64, 64)),
        build.module("head", "head", (64, 2)),
    ]
    facts = build.facts(model=build.model(modules, new_modules=("body.pooler", "head")))
    for adapter in adapters_of(enumerate_candidates(facts, build.request())):
        assert {m.role for m in adapted_modules(adapter, facts.model)} <= {"query", "value"}


@pytest.mark.parametrize(
    ("heads", "new_modules", "expected"),
    [
        (
            ["classifier.dense", "classifier.out_proj"],
            ("classifier.dense", "classifier.out_proj"),
            ("classifier",),
        ),
        (["classifier"], (), ("classifier",)),
        (["pre_classifier", "score"], ("score",), ("pre_classifier", "score")),
        (["cls"], ("cls", "body.pooler.norm"), ("body.pooler.norm", "cls")),
    ],
    ids=["within a head", "pretrained head", "two heads", "other names"],
)
def test_heads_are_trained_as_peft_trains_them(build, heads, new_modules, expected):
    modules = [build.module("body.query", "query", (64, 64)), build.module("body.value", "value", (64, 64))]
    modules += [build.module(name, "head", (64, 2)) for name in heads]
    facts = build.facts(model=build.model(modules, new_modules=new_modules))
    trained = {a.trained_modules for a in adapters_of(enumerate_candidates(facts, build.request()))}
    assert trained == {expected, ()}


def test_a_suffix_never_matches_a_block_that_holds_modules(build):
    modules = [
        build.module("a.query", "query", (64, 64)),
        build.module("a.value", "value", (64, 64)),
        build.module("b.query.inner", "other", (64, 64)),
    ]
    facts = build.facts(model=build.model(modules))
    minimal = next(
        a for a in adapters_of(enumerate_candidates(facts, build.request())) if a.target_set == "minimal"
    )
    assert minimal.targets == ("a.query", "value")


def test_ranks_beyond_every_matrix_are_not_tried(build):
    facts = build.facts(model=build.bert(hidden=16))
    ranks = {a.rank for a in adapters_of(enumerate_candidates(facts, build.request()))}
    assert ranks == {8, 16, None}


@pytest.mark.parametrize(
    ("rows", "dropout"),
    [(1_000, 0.2), (1_001, 0.1), (10_000, 0.1), (10_001, 0.05), (100_000, 0.05), (100_001, 0.0)],
)
def test_dropout_follows_the_usable_rows(build, rows, dropout):
    facts = build.facts(dataset=build.dataset(usable_rows=rows))
    adapters = adapters_of(enumerate_candidates(facts, build.request()))
    assert {a.dropout for a in adapters if a.method is Method.LORA} == {dropout}
    assert {a.dropout for a in adapters if a.method is Method.IA3} == {0.0}


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ({}, {("float32", "float32")}),
        ({"native_bf16": True}, {("float32", "bfloat16"), ("float32", "float32")}),
        ({"gpus": 1}, {("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")}),
        ({"gpus": 1, "capability": (7, 5)}, {("float32", "float16"), ("float32", "float32")}),
        ({"gpus": 1, "capability": None}, {("float32", "float16"), ("float32", "float32")}),
    ],
)
def test_precisions_are_those_of_the_hardware(build, hardware, expected):
    candidates = enumerate_candidates(build.facts(hardware=build.hardware(**hardware)), build.request())
    found = {(c.level.weight_dtype, c.level.compute_dtype) for c in candidates}
    assert found == expected
    full = {c.level.weight_dtype for c in candidates if c.adapter.method is Method.FULL}
    assert full == {"float32"}
    assert {c.level.adapter_dtype for c in candidates} == {"float32"}


def test_candidates_are_distinct_and_ordered(build):
    facts = build.facts(hardware=build.hardware(gpus=1))
    candidates = enumerate_candidates(facts, build.request())
    assert len({candidate.id for candidate in candidates}) == len(candidates)
    assert candidates == enumerate_candidates(facts, build.request())
    priors = [prior_quality(candidate.adapter) for candidate in candidates]
    assert priors == sorted(priors, reverse=True)
    first = candidates[0]
    assert (first.level.compute_dtype, first.level.gradient_checkpointing) == ("bfloat16", False)
    assert first.micro_batch == 16
    same_prior = [c for c in candidates if prior_quality(c.adapter) == 0.4784]
    sizes = [estimated_trainable(candidate, facts.model) for candidate in same_prior]
    assert sizes == sorted(sizes)


def test_checkpointing_only_where_the_model_can(build):
    facts = build.facts(model=replace(build.bert(), supports_gradient_checkpointing=False))
    assert not any(c.level.gradient_checkpointing for c in enumerate_candidates(facts, build.request()))


@pytest.mark.parametrize(
    ("effective", "expected"),
    [(16, (16, 8, 4, 2)), (1, (1,)), (12, (12, 6, 3, 1)), (7, (7, 1)), (15, (15, 5, 3, 1))],
)
def test_micro_batches_are_divisors_near_the_halves(effective, expected):
    assert micro_batches(Recipe(max_length=64, effective_batch=effective)) == expected


def test_methods_restrict_the_search(build):
    candidates = enumerate_candidates(build.facts(), build.request(methods=(Method.IA3,)))
    assert {candidate.adapter.method for candidate in candidates} == {Method.IA3}


def test_a_model_without_linear_layers_takes_full_fine_tuning_only(build):
    facts = build.facts(model=build.model([build.module("conv", "other", (8, 8), "conv2d")]))
    assert {c.adapter.method for c in enumerate_candidates(facts, build.request())} == {Method.FULL}
    with pytest.raises(InputError, match="no linear layer that ia3 or lora could adapt — allow method full"):
        enumerate_candidates(facts, build.request(methods=(Method.LORA, Method.IA3)))


def test_trainable_parameters_follow_from_shapes(build):
    model = build.bert(layers=1, hidden=64)
    sizes = {
        (c.adapter.method, c.adapter.rank, c.adapter.target_set): estimated_trainable(c, model)
        for c in enumerate_candidates(build.facts(model=model), build.request())
    }
    head = 64 * 2 + 2
    assert sizes[Method.LORA, 8, "minimal"] == 2 * 8 * (64 + 64) + head
    assert sizes[Method.LORA, 16, "balanced"] == 4 * 16 * (64 + 64) + head
    assert sizes[Method.IA3, None, "key,value,mlp_out"] == 64 + 64 + 256 + head
    assert sizes[Method.FULL, None, "custom"] == model.parameters


def test_what_cannot_fit_by_arithmetic_is_not_enumerated(build):
    model = replace(build.bert(), parameters=2 * GIB)
    facts = build.facts(model=model, hardware=build.hardware(gpus=1))
    candidates = enumerate_candidates(facts, build.request(memory_limit_bytes=6 * GIB))
    assert {c.level.weight_dtype for c in candidates} == {"bfloat16"}
    assert all(least_bytes(candidate, model) <= 6 * GIB for candidate in candidates)
    with pytest.raises(NothingFits, match=r"fits 1\.00 GiB: the weights.* alone need 4\.00 GiB"):
        enumerate_candidates(facts, build.request(memory_limit_bytes=GIB))


def test_a_limit_above_the_device_does_not_enlarge_it(build):
    facts = build.facts(model=replace(build.bert(), parameters=8 * GIB), hardware=build.hardware(gpus=1))
    assert device_bytes(facts.hardware) == 24 * GIB
    candidates = enumerate_candidates(facts, build.request(memory_limit_bytes=100 * GIB))
    assert {c.level.weight_dtype for c in candidates} == {"bfloat16"}
