"""Which adapters there are, the best of each family first, and what is warned of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.adapters import (
    ADALORA_RANKS,
    LORA_RANKS,
    AdapterFactory,
    dropout_for,
    in_order,
    warnings_for,
)
from rankwise.optimizer.domain import Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.priors import prior_quality
from rankwise.probes.profiles import TaskKind

TRIED_UNASKED = (Method.LORA, Method.ADALORA, Method.IA3, Method.FULL)


def adapters_of(build, methods=TRIED_UNASKED, **facts):
    return AdapterFactory.of(build.facts(**facts)).every(methods)


def candidate_of(adapter, **level) -> Candidate:
    return Candidate(
        adapter=adapter,
        level=Level(**level),
        recipe=Recipe(max_length=64),
        micro_batch=1,
        learning_rate=1e-3,
    )


def test_lora_comes_at_every_rank_target_set_and_variant(build):
    lora = adapters_of(build, (Method.LORA,))
    assert {(a.rank, a.target_set, a.use_rslora, a.use_dora) for a in lora} == {
        (rank, name, *variant)
        for rank in (4, 8, 16, 32, 64, 128)
        for name in ("minimal", "balanced", "full")
        for variant in ((False, False), (True, False), (False, True))
    }
    assert {a.alpha / a.rank for a in lora if not a.use_rslora} == {2.0}
    assert len({a.alpha for a in lora if a.use_rslora}) == 1
    assert {a.trained_modules for a in lora} == {("classifier",)}


def test_adalora_starts_with_half_as_many_ranks_again(build):
    adalora = adapters_of(build, (Method.ADALORA,))
    assert {a.rank for a in adalora} == set(ADALORA_RANKS)
    assert {a.initial_rank / a.rank for a in adalora} == {1.5}
    assert {a.alpha / a.initial_rank for a in adalora} == {2.0}


@pytest.mark.parametrize("method", list(Method))
def test_every_method_has_distinct_adapters(build, method):
    found = adapters_of(build, (method,), model=build.bert(layers=3))
    assert len(found) == len(set(found)) >= 1
    assert {adapter.method for adapter in found} == {method}


def test_last_blocks_leave_some_frozen(build):
    found = adapters_of(build, (Method.LAST_BLOCKS,), model=build.bert(layers=4))
    assert [adapter.last_blocks for adapter in found] == [1, 2]
    assert found[1].unfrozen == ("bert.encoder.layer.2", "bert.encoder.layer.3")
    assert {adapter.trained_modules for adapter in found} == {("classifier",)}


def test_a_model_without_a_new_head_trains_its_own_in_head_only(build):
    model = replace(build.gpt2(), new_modules=())
    dataset = build.dataset(kind=TaskKind.CAUSAL_LM)
    (head,) = adapters_of(build, (Method.HEAD,), model=model, dataset=dataset)
    assert (head.trained_modules, head.unfrozen) == ((), ("lm_head",))
    (bitfit,) = adapters_of(build, (Method.BITFIT,), model=model, dataset=dataset)
    assert (bitfit.trained_modules, bitfit.unfrozen) == ((), ("bias",))


def test_a_mixer_gets_each_adapter_once(build):
    model = build.model([build.module(f"mixer.{n}", "other", (64, 64)) for n in range(4)])
    found = adapters_of(build, (Method.LORA, Method.IA3), model=model)
    assert {adapter.target_set for adapter in found} == {"full"}
    assert len(found) == len(LORA_RANKS) * 3 + 1


@pytest.mark.parametrize(
    ("rows", "dropout"),
    [
        (1, 0.2),
        (1_000, 0.2),
        (1_001, 0.1),
        (10_000, 0.1),
        (10_001, 0.05),
        (100_000, 0.05),
        (100_001, 0.0),
        (None, 0.05),
    ],
)
def test_dropout_follows_the_rows(rows, dropout):
    assert dropout_for(rows) == dropout


def test_dropout_is_for_lora_and_adalora(build):
    dropouts = {(a.method, a.dropout) for a in adapters_of(build, dataset=build.dataset(usable_rows=500))}
    assert dropouts == {
        (Method.LORA, 0.2),
        (Method.ADALORA, 0.2),
        (Method.IA3, 0.0),
        (Method.FULL, 0.0),
    }


def test_the_best_of_each_family_comes_before_any_second(build):
    model = build.bert(hidden=256)
    ordered = in_order(adapters_of(build, model=model), model)
    families = [(a.method, a.use_rslora, a.use_dora) for a in ordered]
    assert len(set(families[:6])) == len(set(families)) == 6
    first = [prior_quality(adapter) for adapter in ordered[:6]]
    assert first == sorted(first, reverse=True)
    for family in set(families):
        own = [prior_quality(a) for a, each in zip(ordered, families, strict=True) if each == family]
        assert own == sorted(own, reverse=True)
    rslora = next(adapter for adapter in ordered if adapter.use_rslora)
    assert (rslora.rank, rslora.target_set) == (64, "minimal"), "the one that was published"


def test_ranks_above_every_matrix_come_last_and_with_a_warning(build):
    model = build.bert(hidden=16)
    ordered = in_order(adapters_of(build, model=model), model)
    too_high = [max(a.rank or 0, a.initial_rank or 0) > 16 for a in ordered]
    assert any(too_high)
    assert too_high == sorted(too_high)
    warned = [bool(warnings_for(candidate_of(adapter), model)) for adapter in ordered]
    assert warned == too_high


def test_a_rank_above_some_matrices_is_warned_of_but_not_last(build):
    modules = [build.module("a.query", "query", (64, 64)), build.module("a.value", "value", (64, 8))]
    model = build.model(modules)
    lora = AdapterFactory.of(build.facts(model=model)).lora(16, "minimal")
    (warning,) = warnings_for(candidate_of(lora), model)
    assert "Rank 16 exceeds the smaller side (from 8) of 1 of 2 adapted matrices" in warning


def test_experts_take_lora_without_dropout(build):
    facts = {"model": build.moe(), "dataset": build.dataset(usable_rows=500)}
    lora = adapters_of(build, (Method.LORA,), **facts)
    assert {(bool(a.target_parameters), a.dropout) for a in lora} == {(True, 0.0), (False, 0.2)}
    assert {a.target_set for a in lora if a.target_parameters} == {"full"}
    others = adapters_of(build, (Method.ADALORA, Method.IA3, Method.OFT, Method.MISS), **facts)
    assert {a.target_parameters for a in others} == {()}


def test_skipped_and_unquantized_experts_are_warned_of(build):
    model = build.moe()
    factory = AdapterFactory.of(build.facts(model=model))
    assert warnings_for(candidate_of(factory.lora(8, "full")), model) == ()
    (skipped,) = warnings_for(candidate_of(factory.ia3("full")), model)
    assert skipped.startswith("The experts, ")
    warnings = warnings_for(candidate_of(factory.lora(8, "full"), quantization=Quantization.NF4), model)
    assert "are quantized to nf4: bitsandbytes leaves experts as they are" in warnings[0]
    assert (
        warnings_for(candidate_of(factory.lora(8, "full"), quantization=Quantization.NF4), build.bert()) == ()
    )


def test_a_block_that_does_not_divide_the_input_is_warned_of(build):
    model = build.bert(hidden=48)
    blocks = {a.rank: a for a in adapters_of(build, (Method.OFT,), model=model) if a.target_set == "minimal"}
    assert warnings_for(candidate_of(blocks[16]), model) == ()
    assert "Blocks of 32 do not divide inputs of 48" in warnings_for(candidate_of(blocks[32]), model)[0]


def test_every_method_trains_a_new_head(build):
    for adapter in adapters_of(build, tuple(Method)):
        assert adapter.trained_modules == (() if adapter.method is Method.FULL else ("classifier",))


def test_new_modules_without_a_head_are_trained(build):
    model = replace(build.bert(), new_modules=("bert.pooler.dense",))
    (ia3, *_) = adapters_of(build, (Method.IA3,), model=model)
    assert ia3.trained_modules == ("bert.pooler.dense", "classifier")
