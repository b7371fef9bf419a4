"""Plain modules quantized by hand, and torch's fast paths, against the real libraries."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import nn

from rankwise.examples.modules import atcnet, vit_heatmap
from rankwise.runners.modules import InvalidQuantization, avoid_fast_paths, plain_linears, quantize_linears

STORED = {"nf4": "Params4bit", "fp4": "Params4bit", "int8": "Int8Params"}
ROUNDING = {"nf4": 0.2, "fp4": 0.3, "int8": 0.02}
"""Of the outputs' size."""


def level(kind: str, *, double: bool = False, compute: str = "float32") -> dict[str, Any]:
    return {"quantization": kind, "double_quantization": double, "compute_dtype": compute}


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(30, 48), nn.GELU(), nn.Linear(48, 20), nn.GELU(), nn.Linear(20, 4)]
    return nn.Sequential(*parts).requires_grad_(False)


class Tied(nn.Module):
    """A head with the embedding's weight, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.body = nn.Linear(32, 32)
        self.head = nn.Linear(32, 50)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(ids)))


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("kind", STORED)
def test_quantized_module_answers_nearly_the_same(kind: str) -> None:
    module, inputs = perceptron(), torch.randn(8, 30)
    before = module(inputs)
    assert quantize_linears(module, level(kind, double=kind == "nf4")) == ["0", "2", "4"]
    assert {type(module[at].weight).__name__ for at in (0, 2, 4)} == {STORED[kind]}
    assert module[0].weight.dtype is (torch.int8 if kind == "int8" else torch.uint8)
    difference = (module(inputs) - before).abs().max() / before.abs().max()
    assert 0 < difference < ROUNDING[kind]


@pytest.mark.parametrize("kind", STORED)
def test_lora_trains_on_a_quantized_module(kind: str) -> None:
    module = vit_heatmap.build()
    inputs = module.example_inputs
    named = quantize_linears(module, level(kind), skip=["v_proj", "head"])
    assert named
    assert not [name for name in named if "v_proj" in name]
    adapted = get_peft_model(module, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    layer = module.backbone.layers[0].attention
    frozen = layer.q_proj.base_layer.weight.detach().clone()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(3):
        loss = adapted(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert type(layer.q_proj.base_layer.weight).__name__ == STORED[kind]
    assert torch.equal(layer.q_proj.base_layer.weight, frozen)
    assert type(layer.v_proj.base_layer) is nn.Linear


def test_computing_dtype_is_kept() -> None:
    module = perceptron().to(torch.bfloat16)
    quantize_linears(module, level("nf4", compute="bfloat16"))
    module(torch.randn(2, 30))  # bitsandbytes would take float32 from it
    assert module[0].compute_dtype is torch.bfloat16


def test_nothing_is_quantized_unasked() -> None:
    module = perceptron()
    assert quantize_linears(module, level("none")) == []
    assert type(module[0]) is nn.Linear


def test_only_what_is_named() -> None:
    module = perceptron()
    assert quantize_linears(module, level("nf4"), only=["0", "2"], skip=["4"]) == ["0", "2"]


def test_names_of_parameters_are_taken_too() -> None:
    """What is trained beside quantized weights may be all biases."""
    module = perceptron()
    assert quantize_linears(module, level("nf4"), skip=["bias", "4"]) == ["0", "2"]
    assert type(module[0].bias) is nn.Parameter


def test_weights_that_are_read_past_their_layer_are_left_alone() -> None:
    assert list(plain_linears(Tied())) == ["body"]
    names = list(plain_linears(atcnet.build()))
    assert names == ["dense0", "dense1", "dense2"]  # and no out_proj of an attention


def test_without_numbers() -> None:
    with torch.device("meta"):
        module = perceptron()
        quantize_linears(module, level("nf4"))
    assert type(module[0].weight).__name__ == "Params4bit"
    assert module[0].weight.is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": ["poler"]}, "no module is called 'poler', which is to skip: did you mean pooler "),
        ({"only": ["k_prj"]}, "no module is called 'k_prj', which is to quantize: did you mean k_proj"),
        ({"only": ["projection"]}, "holds no plain linear layer; there are: backbone.layers.0.attention"),
        ({"only": ["layers"], "skip": ["mlp"]}, "to be quantized and to be skipped at once"),
        ({"skip": ["layers", "pooler"]}, "leaves nothing to quantize: of 13 plain linear layers"),
        (
            {"adapter_config": {"peft_type": "LOHA", "target_modules": ["q_proj"]}},
            "PEFT cannot put LOHA on backbone.layers.0.attention.q_proj, backbone.layers.1.attention.q_proj "
            "once quantized to nf4",
        ),
    ],
)
def test_what_disagrees_is_refused(arguments: dict[str, Any], message: str) -> None:
    module = vit_heatmap.build()
    module.backbone.pooler = nn.Linear(32, 32)
    with pytest.raises(InvalidQuantization) as raised:
        quantize_linears(module, level("nf4"), **arguments)
    assert message in str(raised.value)
    assert type(module.backbone.pooler) is nn.Linear


def test_adapter_on_what_is_skipped_may_be_any() -> None:
    module = perceptron()
    config = {"peft_type": "LOHA", "target_modules": ["4"]}
    assert quantize_linears(module, level("nf4"), skip=["4"], adapter_config=config) == ["0", "2"]


def test_loha_fails_on_quantized_layers() -> None:
    """What the refusal above rests on."""
    module = perceptron()
    quantize_linears(module, level("nf4"))
    adapted = get_peft_model(module, LoHaConfig(r=4, target_modules=["0"]))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        adapted(torch.randn(2, 30))


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    module = perceptron()
    with pytest.raises(
        InvalidQuantization, match="nf4 needs the package bitsandbytes, which is not installed"
    ):
        quantize_linears(module, level("nf4"))
    assert module(torch.randn(2, 30)).shape == (2, 4)


@pytest.mark.parametrize("targets", [["linear1"], ["linear2"], ["self_attn"]])
def test_fast_paths_pass_adapters_over(targets: list[str]) -> None:
    """In torch 2.13 an encoder layer's evaluation is that of the base, unless the fast path is avoided."""
    module, inputs = encoder(), torch.randn(2, 5, 32)
    base = evaluated(module, inputs)
    adapted = get_peft_model(copy.deepcopy(module), LoraConfig(r=4, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert torch.allclose(evaluated(adapted, inputs), base, atol=1e-5)
    assert avoid_fast_paths(adapted) == [f"base_model.model.layers.{number}" for number in range(2)]
    assert not torch.allclose(evaluated(adapted, inputs), base, atol=0.1)


def test_fast_paths_can_be_switched_off_for_all() -> None:
    """What docs/adapters.md says to do for an adapter that rankwise did not put there."""
    module, inputs = encoder(), torch.randn(2, 5, 32)
    base = evaluated(module, inputs)
    adapted = get_peft_model(module, LoraConfig(r=4, target_modules=["linear1"]))
    nn.init.normal_(adapted.base_model.model.layers[0].linear1.lora_B["default"].weight)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert not torch.allclose(evaluated(adapted, inputs), base, atol=0.1)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_avoiding_fast_paths_changes_nothing_else() -> None:
    module, inputs = encoder(), torch.randn(2, 5, 32)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    before = module.eval()(inputs, src_key_padding_mask=mask)
    avoid_fast_paths(module)
    with torch.no_grad():
        after = module(inputs, src_key_padding_mask=mask)
    assert torch.allclose(before[~mask], after[~mask], atol=1e-5)


def test_quantized_encoder_can_be_evaluated() -> None:
    module, inputs = encoder(), torch.randn(2, 5, 32)
    before = evaluated(module, inputs)
    named = quantize_linears(module, level("int8"))
    assert named == [f"layers.{number}.linear{which}" for number in range(2) for which in (1, 2)]
    assert torch.allclose(evaluated(module, inputs), before, atol=0.1)


def evaluated(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return module(inputs)
