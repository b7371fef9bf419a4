"""Norms and biases of models that users bring, as the real transformers builds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from rankwise.probes.tensors import tensor_profiles

SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "Bert": ("SequenceClassification", {**SIZES, "intermediate_size": 64}),
    "ModernBert": ("SequenceClassification", {**SIZES, "intermediate_size": 64, "pad_token_id": 0}),
    "Llama": ("CausalLM", {**SIZES, "intermediate_size": 64, "pad_token_id": 0}),
    "GPT2": ("CausalLM", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "T5": ("Seq2SeqLM", {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2}),
    "ViT": ("ImageClassification", {**SIZES, "intermediate_size": 64, "image_size": 32}),
}


def build(name: str) -> Any:
    kind, settings = MODELS[name]
    with torch.device("meta"):
        return getattr(transformers, f"AutoModelFor{kind}").from_config(
            getattr(transformers, f"{name}Config")(**settings)
        )


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_biases_are_told_apart(name: str) -> None:
    model = build(name)
    found = {tensor.name: tensor for tensor in tensor_profiles(model)}
    assert {key: value.numel() for key, value in model.named_parameters()} == {
        key: tensor.parameters for key, tensor in found.items()
    }
    norms = {
        f"{path}.{own}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) or type(module).__name__ in ("LlamaRMSNorm", "T5LayerNorm")
        for own, _ in module.named_parameters()
    }
    assert norms
    assert {key for key, tensor in found.items() if tensor.kind == "norm"} == norms
    biases = {key for key in found if key.endswith(".bias")} - norms
    assert {key for key, tensor in found.items() if tensor.kind == "bias"} == biases
    blocks = {tensor.block for tensor in found.values() if tensor.block is not None}
    assert {block.rpartition(".")[2] for block in blocks} == {"0", "1"}
    assert len(blocks) == (4 if name == "T5" else 2)


def test_any_module_is_read() -> None:
    """A norm that is called so by its class, and vectors that are neither norm nor bias."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    body = Scale()
    body.net = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 1))
    assert {tensor.block for tensor in tensor_profiles(body)} == {None}
    stacked = nn.Sequential(body, Scale(), Scale())
    stacked[1].net, stacked[2].net = nn.Linear(4, 4), nn.Linear(4, 4)
    assert {tensor.block for tensor in tensor_profiles(stacked)} == {"0", "1", "2"}
    kinds = {tensor.name: tensor.kind for tensor in tensor_profiles(body)}
    assert kinds == {
        "weight": "vector",
        "net.0.weight": "matrix",
        "net.0.bias": "bias",
        "net.1.weight": "norm",
        "net.1.bias": "norm",
        "net.2.in_proj_weight": "matrix",
        "net.2.in_proj_bias": "bias",
        "net.2.out_proj.weight": "matrix",
        "net.2.out_proj.bias": "bias",
    }
