"""Candidates are valid, distinct and in the promised order, whatever the facts."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.errors import InputError, NothingFits
from rankwise.optimizer.adapters import in_order
from rankwise.optimizer.domain import Level, Method, Quantization, Recipe
from rankwise.optimizer.levels import (
    QUANTIZATIONS,
    enumerate_candidates,
    explain_refusals,
    micro_batches,
)
from rankwise.optimizer.rules import refusal
from rankwise.optimizer.sizes import device_bytes, least_bytes
from rankwise.probes.profiles import TaskKind

GIB = 2**30
LIBRARIES = ("bitsandbytes", "deepspeed", "flash-attn", "liger-kernel")


def adapters_of(candidates):
    return list(dict.fromkeys(candidate.adapter for candidate in candidates))


def levels_of(candidates, method=Method.LORA):
    """The levels of the first adapter of a method, in order."""
    first = next(c.adapter for c in candidates if c.adapter.method is method)
    return list(dict.fromkeys(c.level for c in candidates if c.adapter == first))


def causal(build):
    return build.dataset(kind=TaskKind.CAUSAL_LM)


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ({}, [("float32", "float32")]),
        (
            {"native_bf16": True},
            [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")],
        ),
        ({"gpus": 1}, [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")]),
        ({"gpus": 1, "capability": (7, 5)}, [("float32", "float16"), ("float32", "float32")]),
        ({"gpus": 1, "capability": None}, [("float32", "float16"), ("float32", "float32")]),
    ],
)
def test_precisions_are_those_of_the_hardware_preferred_first(build, hardware, expected):
    candidates = enumerate_candidates(build.facts(hardware=build.hardware(**hardware)), build.request())
    found = dict.fromkeys((level.weight_dtype, level.compute_dtype) for level in levels_of(candidates))
    assert list(found) == expected
    full = {c.level.weight_dtype for c in candidates if c.adapter.method is Method.FULL}
    assert full == {"float32"}
    assert {c.level.adapter_dtype for c in candidates} == {"float32"}


def test_levels_escalate_and_single_variations_come_last(build):
    hardware = build.hardware(gpus=1, libraries=LIBRARIES)
    facts = build.facts(model=build.gpt2(hidden=128), hardware=hardware, dataset=causal(build))
    levels = levels_of(enumerate_candidates(facts, build.request()))
    kinds = [
        (level.weight_dtype, level.compute_dtype, level.quantization, level.gradient_checkpointing)
        for level in levels
    ]
    none, int8, nf4, _ = Quantization
    half = "bfloat16"
    assert kinds[:14] == [
        (weights, compute, quantization, checkpointing)
        for weights, compute, quantizations in (
            ("float32", half, (none, int8, nf4)),
            (half, half, (none, int8, nf4)),
            ("float32", "float32", (none,)),
        )
        for quantization in quantizations
        for checkpointing in (False, True)
    ]
    preferred = levels[0]
    changes = [
        {"quantization": nf4, "double_quantization": True},
        {"quantization": Quantization.FP4},
        {"attention": "eager"},
        {"loss": "chunked"},
        {"loss": "liger"},
        {"optimizer": "adamw_torch_fused"},
        {"optimizer": "adamw_8bit"},
        {"optimizer": "paged_adamw_8bit"},
        {"compile": True},
    ]
    only_faster = ({"attention": "eager"}, {"optimizer": "adamw_torch_fused"}, {"compile": True})
    assert levels[14:] == [
        replace(preferred, **change, gradient_checkpointing=checkpointing)
        for change in changes
        for checkpointing in ((False,) if change in only_faster else (False, True))
    ]


def test_flash_attention_is_tried_where_model_and_machine_can(build):
    model = replace(build.bert(), attention_kernels=("flash_attention_2", "sdpa", "eager"))
    hardware = build.hardware(gpus=1, libraries=LIBRARIES)
    levels = levels_of(enumerate_candidates(build.facts(model=model, hardware=hardware), build.request()))
    assert levels[0].attention == "sdpa"
    assert {level.attention for level in levels} == {"sdpa", "eager", "flash_attention_2"}


@pytest.mark.parametrize("effective_batch", [4, 16])
@pytest.mark.parametrize("packing", [False, True])
def test_packed_rows_reach_flash_attention_one_at_a_time(build, packing, effective_batch):
    """Also where a single row is none of the usual micro-batches."""
    recipe = Recipe(max_length=128, effective_batch=effective_batch, packing=packing)
    facts = build.facts(
        model=replace(build.gpt2(), attention_kernels=("sdpa", "eager", "flash_attention_2")),
        hardware=build.hardware(gpus=1, libraries=LIBRARIES),
        dataset=causal(build),
        recipe=recipe,
    )
    sizes: dict[str, list[int]] = {}
    first = None
    for candidate in enumerate_candidates(facts, build.request()):
        first = first or candidate.adapter
        if candidate.adapter == first and candidate.level.loss == "plain":
            sizes.setdefault(candidate.level.attention, []).append(candidate.micro_batch)
    usual = micro_batches(recipe)
    assert set(sizes["sdpa"]) == set(sizes["eager"]) == set(usual)
    assert sizes["flash_attention_2"] == ([1] if packing else list(usual))


def test_a_model_without_sdpa_takes_what_it_has(build):
    model = replace(build.bert(), attention_kernels=("eager",))
    for request in (build.request(), build.request(use_tiers=True)):
        candidates = enumerate_candidates(build.facts(model=model), request)
        assert {candidate.level.attention for candidate in candidates} == {"eager"}


def test_losses_vary_for_language_models_with_wide_logits_only(build):
    def losses(**facts):
        return {c.level.loss for c in enumerate_candidates(build.facts(**facts), build.request())}

    assert losses(model=build.gpt2(hidden=64), dataset=causal(build)) == {"plain", "chunked"}
    wide = replace(build.gpt2(hidden=512), hidden_size=512)
    assert losses(model=wide, dataset=causal(build)) == {"plain"}
    assert losses() == {"plain"}


def test_quantizations_restrict_the_search(build):
    facts = build.facts(hardware=build.hardware(libraries=LIBRARIES))
    candidates = enumerate_candidates(facts, build.request(quantizations=(Quantization.FP4,)))
    assert {c.level.quantization for c in candidates} == {Quantization.FP4}
    assert {c.level.double_quantization for c in candidates} == {False, True}
    assert Method.FULL not in {c.adapter.method for c in candidates}
    plain = enumerate_candidates(facts, build.request(quantizations=(Quantization.NONE,)))
    assert {c.level.quantization for c in plain} == {Quantization.NONE}


def test_full_fine_tuning_varies_what_it_can(build):
    facts = build.facts(hardware=build.hardware(libraries=LIBRARIES))
    full = enumerate_candidates(facts, build.request(methods=(Method.FULL,)))
    assert {c.level.quantization for c in full} == {Quantization.NONE}
    assert {c.level.optimizer for c in full} == {"adamw_torch", "adamw_torch_fused", "adamw_8bit"}


def test_micro_batches_descend_within_a_level_and_adapters_are_in_order(build):
    facts = build.facts(hardware=build.hardware(gpus=1, libraries=LIBRARIES))
    candidates = enumerate_candidates(facts, build.request())
    for _, group in groupby(candidates, key=lambda c: (c.adapter, c.level)):
        assert [c.micro_batch for c in group] == [16, 8, 4, 2]
    adapters = adapters_of(candidates)
    assert [adapter for adapter, _ in groupby(c.adapter for c in candidates)] == adapters
    assert tuple(adapters) == in_order(adapters, facts.model)
    assert {adapter.method for adapter in adapters} == {
        Method.LORA,
        Method.ADALORA,
        Method.IA3,
        Method.HEAD,
        Method.LAST_BLOCKS,
        Method.BITFIT,
        Method.FULL,
    }
    first = next(number for number, adapter in enumerate(adapters) if adapter.method.unfreezes)
    assert len({adapter.method for adapter in adapters[:first]}) == 4
    assert first >= 11, "the best two of each family come first"


def test_what_freezes_the_model_is_tried_unasked_only_with_a_new_head(build):
    facts = build.facts(model=build.gpt2(), dataset=causal(build))
    candidates = enumerate_candidates(facts, build.request())
    assert not any(candidate.adapter.method.unfreezes for candidate in candidates)


@pytest.mark.parametrize("method", list(Method))
def test_methods_restrict_the_search(build, method):
    candidates = enumerate_candidates(build.facts(), build.request(methods=(method,)))
    assert {candidate.adapter.method for candidate in candidates} == {method}


def test_checkpointing_only_where_the_model_can(build):
    facts = build.facts(model=replace(build.bert(), supports_gradient_checkpointing=False))
    for request in (build.request(), build.request(use_tiers=True)):
        assert not any(c.level.gradient_checkpointing for c in enumerate_candidates(facts, request))


@pytest.mark.parametrize(
    ("effective", "expected"),
    [(16, (16, 8, 4, 2)), (1, (1,)), (12, (12, 6, 3, 1)), (7, (7, 1)), (15, (15, 5, 3, 1))],
)
def test_micro_batches_are_divisors_near_the_halves(effective, expected):
    assert micro_batches(Recipe(max_length=64, effective_batch=effective)) == expected


def test_a_model_without_linear_layers_takes_no_adapter(build):
    facts = build.facts(
        model=build.model([build.module("conv", "other", (8, 8), "conv2d")]), dataset=causal(build)
    )
    tried = {c.adapter.method for c in enumerate_candidates(facts, build.request())}
    assert tried == {Method.BITFIT, Method.FULL}
    with pytest.raises(InputError, match="no linear layer that ia3 or lora could adapt — allow method full"):
        enumerate_candidates(facts, build.request(methods=(Method.LORA, Method.IA3)))


def test_what_is_asked_for_and_impossible_is_refused_with_the_reason(build):
    facts = build.facts(hardware=build.hardware(libraries=LIBRARIES))
    with pytest.raises(InputError, match=r"methods \(full\) as asked\. Quantized weights[^.]*\. — allow"):
        enumerate_candidates(facts, build.request(methods=(Method.FULL,), quantizations=(Quantization.NF4,)))
    with pytest.raises(InputError, match=r"as asked\. Quantization needs the package"):
        enumerate_candidates(build.facts(), build.request(quantizations=(Quantization.INT8,)))


def test_refusals_are_listed_with_rule_count_and_example(build):
    facts = build.facts(model=build.moe(), dataset=causal(build))
    left_out = {each.rule.name: each for each in explain_refusals(facts, build.request())}
    assert "experts-dora" in left_out
    assert left_out["experts-dora"].adapter.use_dora
    assert left_out["float16-without-gpu"].level.compute_dtype == "float16"
    assert left_out["quantized-without-bitsandbytes"].count > 60
    counts = [each.count for each in explain_refusals(facts, build.request())]
    assert counts == sorted(counts, reverse=True)


def test_what_cannot_fit_by_arithmetic_is_not_enumerated(build):
    model = replace(build.bert(), parameters=2 * GIB)
    facts = build.facts(model=model, hardware=build.hardware(gpus=1))
    candidates = enumerate_candidates(facts, build.request(memory_limit_bytes=6 * GIB))
    assert {c.level.weight_dtype for c in candidates} == {"bfloat16"}
    with pytest.raises(NothingFits, match=r"fits 1\.00 GiB: the weights.* alone need 4\.00 GiB"):
        enumerate_candidates(facts, build.request(memory_limit_bytes=GIB))


def test_quantization_makes_a_large_model_fit(build):
    model = build.bert(layers=48, hidden=4096)
    hardware = build.hardware(gpus=1, libraries=LIBRARIES)
    facts = build.facts(model=model, hardware=hardware)
    limit = model.parameters
    asked = build.request(memory_limit_bytes=limit, methods=(Method.LORA, Method.FULL))
    candidates = enumerate_candidates(facts, asked)
    assert {c.level.quantization for c in candidates} == {Quantization.NF4, Quantization.FP4}
    assert Method.FULL not in {c.adapter.method for c in candidates}
    varied = {c.level.optimizer for c in candidates if c.level.quantization is Quantization.NF4}
    assert "paged_adamw_8bit" in varied, "settings vary on what fits"


def test_a_limit_above_the_device_does_not_enlarge_it(build):
    facts = build.facts(model=replace(build.bert(), parameters=8 * GIB), hardware=build.hardware(gpus=1))
    assert device_bytes(facts.hardware) == 24 * GIB
    candidates = enumerate_candidates(facts, build.request(memory_limit_bytes=100 * GIB))
    assert {c.level.weight_dtype for c in candidates} == {"bfloat16"}


ROLES = ("query", "key", "value", "qkv", "attention_output", "mlp_in", "mlp_gate", "mlp_out", "other")


@st.composite
def any_facts(draw, build):
    """Models of any modules on any machine, for any task."""
    names = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["body.0", "body.1", "body.1.inner"]), st.sampled_from(["a", "b", "c"])
            ).map(".".join),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    side = st.sampled_from([2, 7, 16, 64, 200])
    modules = [
        build.module(
            name,
            draw(st.sampled_from([*ROLES, "router", "head"])),
            (draw(side), draw(side)),
            draw(st.sampled_from(["linear", "linear", "conv1d", "embedding", "experts", "conv2d"])),
        )
        for name in names
    ]
    model = build.model(
        modules,
        supports_gradient_checkpointing=draw(st.booleans()),
        attention_kernels=draw(
            st.sampled_from(
                [("sdpa", "eager"), ("eager",), ("flash_attention_2", "sdpa"), ("flex_attention",)]
            )
        ),
        new_modules=draw(st.sampled_from([(), (names[0],)])),
        hidden_size=draw(st.sampled_from([None, 16, 64])),
    )
    return build.facts(
        model=model,
        hardware=build.hardware(
            gpus=draw(st.integers(0, 2)),
            native_bf16=draw(st.booleans()),
            capability=draw(st.sampled_from([None, (7, 5), (8, 0), (9, 0)])),
            libraries=draw(st.sets(st.sampled_from(LIBRARIES))),
        ),
        dataset=build.dataset(
            usable_rows=draw(st.sampled_from([1, 5_000, 10**6])), kind=draw(st.sampled_from(TaskKind))
        ),
        recipe=Recipe(max_length=64, effective_batch=draw(st.sampled_from([1, 6, 16]))),
    )


@settings(max_examples=40)
@given(data=st.data())
def test_no_candidate_is_invalid_whatever_the_facts(build, data):
    facts = data.draw(any_facts(build))
    request = build.request(
        methods=tuple(data.draw(st.sets(st.sampled_from(Method)))),
        quantizations=tuple(data.draw(st.sets(st.sampled_from(Quantization)))),
        use_tiers=data.draw(st.booleans()),
        memory_limit_bytes=data.draw(st.sampled_from([None, 20_000, 10**6])),
        processes=data.draw(st.sampled_from([None, 1, 2])),
    )
    try:
        candidates = enumerate_candidates(facts, request)
    except (InputError, NothingFits):
        return
    assert candidates == enumerate_candidates(facts, request)
    assert len(set(candidates)) == len(candidates)
    capacity_bytes = min(filter(None, (request.memory_limit_bytes, device_bytes(facts.hardware))))
    pairs = {(candidate.adapter, candidate.level): candidate for candidate in candidates}
    for (adapter, level), candidate in pairs.items():
        assert refusal(adapter, level, facts.model, facts.dataset.task.kind, facts.hardware) is None
        assert least_bytes(candidate, facts.model) <= capacity_bytes
        assert candidate.learning_rate > 0
        assert level.processes <= max(2, len(facts.hardware.gpus))
        assert facts.recipe.effective_batch % (candidate.micro_batch * level.processes) == 0


@settings(max_examples=40)
@given(data=st.data())
def test_more_libraries_and_memory_never_remove_a_candidate(build, data):
    """More memory may change the precision whose settings are varied, and how trainings are spread; all
    precisions stay."""
    facts = data.draw(any_facts(build))
    limit = data.draw(st.sampled_from([20_000, 10**6]))
    host = replace(facts.hardware.host, libraries=dict.fromkeys(LIBRARIES, "1.0"))
    richer = replace(facts, hardware=replace(facts.hardware, host=host))

    def found(each, limit_bytes):
        try:
            candidates = enumerate_candidates(each, build.request(memory_limit_bytes=limit_bytes))
            return {candidate for candidate in candidates if not candidate.level.sharding}
        except (InputError, NothingFits):
            return set()

    def unvaried(candidates):
        settings_of = ("attention", "loss", "optimizer", "compile", "double_quantization")
        return {
            candidate
            for candidate in candidates
            if candidate.level.quantization in QUANTIZATIONS
            and not any(getattr(candidate.level, name) != getattr(Level(), name) for name in settings_of)
        }

    with_libraries = found(richer, limit)
    assert found(facts, limit) <= with_libraries
    assert unvaried(with_libraries) <= found(richer, 2 * limit)


def test_a_gpu_beside_a_capable_host_never_removes_a_candidate(build):
    def found(**hardware):
        facts = build.facts(hardware=build.hardware(native_bf16=True, libraries=LIBRARIES, **hardware))
        return set(enumerate_candidates(facts, build.request()))

    assert found() < found(gpus=1)


def test_ids_are_unique(build):
    facts = build.facts(
        hardware=build.hardware(libraries=LIBRARIES), recipe=Recipe(max_length=64, effective_batch=1)
    )
    candidates = enumerate_candidates(facts, build.request())
    assert len({candidate.id for candidate in candidates}) == len(candidates)
