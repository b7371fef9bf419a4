"""Liger's fused loss by its stand-in, against what its own code says that it allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rankwise.runners.fused_loss import FusedLossStandIn
from rankwise.runners.tensor_memory import TensorMemory

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 64, 32, 4096
CHUNK = 2  # next power of two of 256 tokens / (4096 / 32)


@pytest.fixture
def model() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def peak_of_step(model: Any) -> int:
    tokens = torch.zeros((ROWS, LENGTH), dtype=torch.long)
    memory = TensorMemory()
    with memory:
        model(input_ids=tokens, labels=tokens).loss.backward()
    return memory.peak_bytes


def test_logits_exist_a_few_tokens_at_a_time(model: Any) -> None:
    model.lm_head.weight.requires_grad_(False)
    plain = peak_of_step(model)
    FusedLossStandIn(model)
    fused = peak_of_step(model)
    logits_bytes = 4 * ROWS * LENGTH * VOCABULARY
    assert plain > 2 * logits_bytes
    assert fused < plain - 2 * logits_bytes + 4 * CHUNK * VOCABULARY


def test_every_parameter_gets_a_gradient(model: Any) -> None:
    FusedLossStandIn(model)
    peak_of_step(model)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_evaluation_has_its_logits(model: Any) -> None:
    FusedLossStandIn(model)
    tokens = torch.zeros((ROWS, LENGTH), dtype=torch.long)
    with torch.no_grad():
        assert model(input_ids=tokens).logits.shape == (ROWS, LENGTH, VOCABULARY)
