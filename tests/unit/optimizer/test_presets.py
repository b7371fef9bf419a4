"""What a study is asked to begin with comes first, as it was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.domain import Adapter, Method, OwnLora, Preset, Quantization
from rankwise.optimizer.levels import enumerate_candidates, refused_starts
from rankwise.optimizer.methods import rank_on
from rankwise.optimizer.presets import graded_ranks, preset_for, starts_of
from rankwise.optimizer.sizes import quantizable_parameters, trainable_parameters
from rankwise.optimizer.targets import adapted_modules
from rankwise.probes.profiles import TaskKind

LIBRARIES = ("bitsandbytes",)


def adapters_of(candidates):
    return list(dict.fromkeys(candidate.adapter for candidate in candidates))


@pytest.fixture(scope="module")
def facts(build):
    return build.facts(hardware=build.hardware(libraries=LIBRARIES))


@pytest.mark.parametrize(
    ("preset", "rank", "target_set", "quantization"),
    [
        (Preset.EFFICIENT, 4, "minimal", Quantization.NONE),
        (Preset.BALANCED, 8, "balanced", Quantization.NONE),
        (Preset.EXPRESSIVE, 16, "full", Quantization.NONE),
        (Preset.QLORA_MEMORY, 4, "minimal", Quantization.NF4),
        (Preset.QLORA_QUALITY, 8, "balanced", Quantization.NF4),
    ],
)
def test_a_preset_comes_first_and_keeps_its_own(build, facts, preset, rank, target_set, quantization):
    candidates = enumerate_candidates(facts, build.request(presets=(preset,)))
    first = candidates[0]
    adapter = first.adapter
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (rank, 2.0 * rank, 0.1)
    assert adapter.target_set == target_set
    assert first.level.quantization is quantization
    assert len(adapters_of(candidates)) > 50, "the others follow"
    assert len({candidate.id for candidate in candidates}) == len(candidates)
    only = enumerate_candidates(facts, build.request(presets=(preset,), only_presets=True))
    assert adapters_of(only) == [adapter]
    assert {candidate.level.quantization for candidate in only} == {quantization}


def test_presets_come_in_the_order_of_asking_after_an_own_lora(build, facts):
    own = OwnLora(rank=3, targets=("query", "intermediate.dense"))
    request = build.request(lora=own, presets=(Preset.EXPRESSIVE, Preset.EFFICIENT, Preset.QLORA_MEMORY))
    adapters = adapters_of(enumerate_candidates(facts, request))
    assert [adapter.rank for adapter in adapters[:3]] == [3, 16, 4]
    assert adapters[0].targets == ("intermediate.dense", "query")
    levels = [c.level for c in enumerate_candidates(facts, request) if c.adapter == adapters[2]]
    assert {level.quantization for level in levels} >= {Quantization.NONE, Quantization.NF4}
    assert levels[0].quantization is Quantization.NONE, "efficient was asked for before"


@pytest.mark.parametrize(
    ("kind", "labels", "rows", "expected"),
    [
        (TaskKind.TEXT_CLASSIFICATION, ("a", "b"), 100_000, Preset.BALANCED),
        (TaskKind.TEXT_CLASSIFICATION, ("a", "b", "c"), 100_000, Preset.EXPRESSIVE),
        (TaskKind.REGRESSION, (), 100_000, Preset.EFFICIENT),
        (TaskKind.REGRESSION, (), 100_001, Preset.QLORA_MEMORY),
        (TaskKind.TEXT_CLASSIFICATION, ("a", "b", "c"), 100_001, Preset.QLORA_MEMORY),
        (TaskKind.CHAT, (), 5, Preset.BALANCED),
    ],
)
def test_auto_follows_task_and_rows(build, kind, labels, rows, expected):
    dataset = build.dataset(usable_rows=rows, kind=kind)
    dataset = replace(dataset, task=replace(dataset.task, labels=labels))
    facts = build.facts(dataset=dataset)
    assert preset_for(facts) is expected
    (start,) = starts_of(facts, build.request(presets=(Preset.AUTO, expected)))
    assert start.name == f"preset {expected}"


def test_an_own_lora_is_tried_as_it_is(build, facts):
    own = OwnLora(
        rank=8,
        alpha=4.0,
        dropout=0.3,
        use_rslora=True,
        targets=("balanced",),
        quantization=Quantization.NF4,
        double_quantization=True,
        compute_dtype="float32",
        skip_modules=("pooler.dense",),
    )
    candidates = enumerate_candidates(facts, build.request(lora=own, only_presets=True))
    (adapter,) = adapters_of(candidates)
    assert (adapter.alpha, adapter.dropout, adapter.use_rslora) == (4.0, 0.3, True)
    assert adapter.trained_modules == ("classifier",)
    for level in {candidate.level for candidate in candidates}:
        assert level.compute_dtype == "float32"
        assert level.double_quantization
        assert level.skip_modules == ("pooler.dense",)


def test_what_is_skipped_is_not_quantized_and_neither_is_the_output_layer(build):
    model = build.gpt2()
    facts = build.facts(
        model=model,
        dataset=build.dataset(kind=TaskKind.CAUSAL_LM),
        hardware=build.hardware(libraries=LIBRARIES),
    )
    own = OwnLora(quantization=Quantization.NF4, skip_modules=("c_proj",))
    (start,) = starts_of(facts, build.request(lora=own))
    assert start.skip_modules == ("c_proj", "lm_head")
    skipped = sum(m.in_features * m.out_features for m in model.modules if m.name.endswith("c_proj"))
    all_of_it = quantizable_parameters(model, ())
    assert quantizable_parameters(model, start.skip_modules) == all_of_it - skipped


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (OwnLora(targets=("q_proj",)), r"no module of some/model matches 'q_proj'"),
        (
            OwnLora(quantization=Quantization.NF4, skip_modules=("pooler.dens",)),
            r"no linear layer 'pooler\.dens'.*pooler\.dense",
        ),
        (OwnLora(targets=("LayerNorm",)), r"no module of some/model matches 'LayerNorm'"),
    ],
)
def test_names_that_the_model_does_not_have_are_refused_with_the_nearest(build, facts, own, message):
    with pytest.raises(InputError, match=message):
        enumerate_candidates(facts, build.request(lora=own))


def test_a_model_without_linear_layers_has_no_preset(build):
    facts = build.facts(model=build.model([build.module("conv", "other", (8, 8), "conv2d")]))
    with pytest.raises(InputError, match=r"preset balanced: .* no linear layer"):
        enumerate_candidates(facts, build.request(presets=(Preset.BALANCED,)))


def test_a_start_that_cannot_be_tried_is_told_and_the_others_go_on(build):
    request = build.request(presets=(Preset.QLORA_MEMORY, Preset.BALANCED))
    facts = build.facts()
    ((start, rule),) = refused_starts(facts, request)
    assert (start.name, rule.name) == ("preset qlora_memory", "quantized-without-bitsandbytes")
    assert adapters_of(enumerate_candidates(facts, request))[0].rank == 8
    with pytest.raises(InputError, match="needs the package bitsandbytes"):
        enumerate_candidates(facts, build.request(presets=(Preset.QLORA_MEMORY,), only_presets=True))


def test_ranks_grow_towards_the_last_layers(build):
    model = build.bert(layers=8)
    facts = build.facts(model=model)
    own = OwnLora(rank=8, first_rank=4, last_rank=16, targets=("query", "value"))
    (start,) = starts_of(facts, build.request(lora=own))
    adapter = start.adapter
    assert adapter.describe() == "LORA r=4…16 α=16 query,value"
    ranks = [rank_on(adapter, f"bert.encoder.layer.{n}.attention.self.query") for n in range(8)]
    assert ranks == [4, 4, 8, 8, 8, 8, 16, 16]
    alphas = dict(adapter.alpha_pattern)
    assert {alphas[pattern] / rank for pattern, rank in adapter.rank_pattern} == {2.0}
    head = 64 * 2 + 2
    assert trainable_parameters(adapter, model) == 2 * 128 * sum(ranks) + head
    assert {m.name for m in adapted_modules(adapter, model)} == {
        f"bert.encoder.layer.{n}.attention.self.{role}" for n in range(8) for role in ("query", "value")
    }


@pytest.mark.parametrize(("layers", "expected"), [(2, [4, 16]), (3, [4, None, 16]), (1, [None])])
def test_a_quarter_is_one_layer_at_least(build, layers, expected):
    patterns = dict(graded_ranks(build.bert(layers=layers), first=4, last=16))
    adapter = replace(_lora(), rank_pattern=tuple(patterns.items()))
    ranks = [rank_on(adapter, f"bert.encoder.layer.{n}.output.dense") or None for n in range(layers)]
    assert ranks == expected


def _lora() -> Adapter:

    return Adapter(method=Method.LORA)
