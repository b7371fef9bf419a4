"""Bytes that are needed whatever the batch follow from shapes, dtypes and quantization."""

from __future__ import annotations

import pytest

from rankwise.optimizer.adapters import AdapterFactory
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.sizes import (
    device_bytes,
    estimated_trainable,
    frozen_bytes,
    least_bytes,
    quantizable_parameters,
)

GIB = 2**30


def candidate_of(adapter: Adapter, **level) -> Candidate:
    return Candidate(
        adapter=adapter,
        level=Level(**level),
        recipe=Recipe(max_length=64),
        micro_batch=1,
        learning_rate=1e-3,
    )


def test_trainable_parameters_follow_from_shapes(build):
    model = build.bert(layers=1, hidden=64)
    factory = AdapterFactory.of(build.facts(model=model))
    head = 64 * 2 + 2
    assert estimated_trainable(candidate_of(factory.lora(8, "minimal")), model) == 2 * 8 * 128 + head
    assert estimated_trainable(candidate_of(factory.lora(16, "balanced")), model) == 4 * 16 * 128 + head
    assert estimated_trainable(candidate_of(factory.ia3("own")), model) == 64 + 64 + 256 + head
    assert estimated_trainable(candidate_of(Adapter(method=Method.FULL)), model) == model.parameters


def test_each_way_to_save_memory_saves_some(build):
    model = build.bert(layers=4, hidden=256)
    lora = AdapterFactory.of(build.facts(model=model)).lora(8, "full")
    sizes = [
        least_bytes(candidate_of(lora, **level), model)
        for level in (
            {},
            {"weight_dtype": "bfloat16"},
            {"weight_dtype": "bfloat16", "quantization": Quantization.INT8},
            {"weight_dtype": "bfloat16", "quantization": Quantization.NF4},
            {"weight_dtype": "bfloat16", "quantization": Quantization.NF4, "double_quantization": True},
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    optimizers = [
        least_bytes(candidate_of(Adapter(method=Method.FULL), optimizer=name), model) / model.parameters
        for name in ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")
    ]
    assert optimizers == pytest.approx([16, 16, 10.03125, 8])


def test_embeddings_and_experts_are_not_quantized(build):
    model = build.moe(layers=1, hidden=64)
    assert quantizable_parameters(model, ()) == 4 * 64 * 64
    plain = frozen_bytes(Level(weight_dtype="bfloat16"), model, ())
    quantized = frozen_bytes(Level(weight_dtype="bfloat16", quantization=Quantization.INT8), model, ())
    assert plain - quantized == 4 * 64 * 64


def test_the_largest_gpu_counts_and_the_host_only_without_one(build):
    assert device_bytes(build.hardware()) == 16 * GIB
    assert device_bytes(build.hardware(gpus=2)) == 24 * GIB
