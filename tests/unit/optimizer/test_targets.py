"""Suffixes match what PEFT would: the wanted modules, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.optimizer.domain import Adapter, Method
from rankwise.optimizer.methods import EXPERTS, LINEAR, TRANSPOSED
from rankwise.optimizer.targets import Targets, adapted_modules, suffixes_for
from rankwise.probes.profiles import TaskKind

NAMES = st.lists(st.sampled_from(["a", "b", "output", "dense", "0", "10"]), min_size=1, max_size=4).map(
    ".".join
)
ALL_KINDS = LINEAR | TRANSPOSED | EXPERTS


def matches(name: str, target: str) -> bool:
    """PEFT's rule."""
    return name == target or name.endswith("." + target)


def targets_of(model, task=TaskKind.CAUSAL_LM):
    return Targets(model, task)


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


def test_bert_gets_the_sets_that_were_meant(build):
    model = build.bert(layers=11)
    targets = targets_of(model, TaskKind.TEXT_CLASSIFICATION)
    assert targets.find("minimal", LINEAR).targets == ("query", "value")
    assert targets.find("balanced", LINEAR).targets == ("attention.output.dense", "key", "query", "value")
    assert targets.find("full", LINEAR).targets == ("dense", "key", "query", "value")
    own = targets.find_ia3("own", LINEAR)
    adapter = Adapter(method=Method.IA3, targets=own.targets, feedforward=own.feedforward)
    assert {module.role for module in adapted_modules(adapter, model)} == {"key", "value", "mlp_out"}
    assert own.name == "key,value,mlp_out"
    assert set(own.feedforward) < set(own.targets)
    assert targets.trained_modules == ("classifier",)


def test_a_fused_matrix_stands_for_query_key_and_value(build):
    targets = targets_of(build.gpt2())
    assert targets.find("minimal", ALL_KINDS).targets == ("c_attn",)
    assert targets.find("balanced", ALL_KINDS).targets == ("attn.c_proj", "c_attn")
    assert targets.find("full", ALL_KINDS).targets == ("c_attn", "c_fc", "c_proj")
    assert targets.find_ia3("own", ALL_KINDS).targets == ("c_attn", "mlp.c_proj")


def test_a_method_for_linear_layers_finds_none_in_gpt2(build):
    targets = targets_of(build.gpt2())
    assert targets.find("full", LINEAR) is None
    assert targets.find_ia3("full", LINEAR) is None


def test_missing_roles_fall_back_to_all_linear_layers(build):
    model = build.model([build.module(f"mixer.{n}.fc{m}", "other", (64, 64)) for n in (0, 1) for m in (1, 2)])
    targets = targets_of(model)
    for name in ("minimal", "balanced", "full"):
        assert (targets.find(name, LINEAR).name, targets.find(name, LINEAR).targets) == (
            "full",
            ("fc1", "fc2"),
        )
    assert targets.find_ia3("own", LINEAR) is None
    assert targets.find_ia3("full", LINEAR).feedforward == ()


def test_experts_belong_to_the_full_set_and_routers_to_none(build):
    model = build.moe()
    targets = targets_of(model)
    assert targets.find("balanced", ALL_KINDS).target_parameters == ()
    assert targets.find("full", LINEAR).target_parameters == ()
    full = targets.find("full", ALL_KINDS)
    assert full.target_parameters == ("down_proj", "gate_up_proj")
    adapter = Adapter(
        method=Method.LORA, rank=8, targets=full.targets, target_parameters=full.target_parameters
    )
    assert {module.role for module in adapted_modules(adapter, model)} == {
        *("query", "key", "value", "attention_output", "mlp_in", "mlp_out")
    }


def test_an_expert_is_told_from_a_layer_of_the_same_name(build):
    model = build.model(
        [
            build.module("layers.0.mlp.fc2", "mlp_out", (64, 64)),
            build.module("layers.1.mlp.experts.fc2", "mlp_out", (64, 64), "experts", 4),
        ]
    )
    full = targets_of(model).find("full", ALL_KINDS)
    adapter = Adapter(method=Method.LORA, rank=8, targets=full.targets)
    assert [module.kind for module in adapted_modules(adapter, model)] == ["linear"]


def test_what_peft_would_take_for_experts_is_left_out_beside_them(build):
    modules = [
        build.module("layers.0.mlp.down_proj", "mlp_out", (64, 64)),
        build.module("layers.0.self_attn.q_proj", "query", (64, 64)),
        build.module("layers.1.mlp.experts.down_proj", "mlp_out", (64, 64), "experts", 4),
    ]
    assert targets_of(build.model(modules)).find("full", ALL_KINDS).targets == ("q_proj",)
    assert targets_of(build.model(modules)).find("full", LINEAR).targets == ("down_proj", "q_proj")
    without = targets_of(build.model(modules[:2])).find("full", ALL_KINDS)
    assert without.targets == ("down_proj", "q_proj")


def test_heads_and_new_modules_get_no_adapter(build):
    modules = [
        build.module("body.query", "query", (64, 64)),
        build.module("body.value", "value", (64, 64)),
        build.module("body.pooler.dense", "other", (64, 64)),
        build.module("head", "head", (64, 2)),
    ]
    targets = targets_of(build.model(modules, new_modules=("body.pooler", "head")))
    assert targets.find("full", LINEAR).targets == ("query", "value")


@pytest.mark.parametrize("task", [TaskKind.TEXT_CLASSIFICATION, TaskKind.REGRESSION])
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
def test_heads_are_trained_as_peft_trains_them(build, heads, new_modules, expected, task):
    modules = [build.module("body.query", "query", (64, 64)), build.module("body.value", "value", (64, 64))]
    modules += [build.module(name, "head", (64, 2)) for name in heads]
    assert targets_of(build.model(modules, new_modules=new_modules), task).trained_modules == expected


def test_a_suffix_never_matches_a_block_that_holds_modules(build):
    modules = [
        build.module("a.query", "query", (64, 64)),
        build.module("a.value", "value", (64, 64)),
        build.module("b.query.inner", "other", (64, 64)),
    ]
    assert targets_of(build.model(modules)).find("minimal", LINEAR).targets == ("a.query", "value")
