"""Verdicts held against PEFT itself: what is said to work works, and what is said not to does not."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.optimizer.sizes import trainable_parameters
from rankwise.optimizer.verdicts import NOT_REACHED, VARIANTS, Proof, Support, Verdict
from rankwise.probes.model import inspect_model, inspect_module, natural_task
from rankwise.probes.profiles import Factory, ModelProfile
from rankwise.runners.inspect_model import subject_of
from rankwise.runners.own_module import OwnModule, observe
from rankwise.runners.transformers_model import TransformersModel
from rankwise.runners.verdicts import verdicts_of

from .random_modules import build

LORA = VARIANTS[0]
LIBRARIES = ("bitsandbytes",)
ADAPTED = (nn.Linear, Conv1D, nn.Conv2d)
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.MultiheadAttention)
SEEDS = range(int(os.environ.get("RANKWISE_VERDICT_SEEDS", "24")))
"""More of them make a benchmark of this: seven (module, method) pairs each."""


def verdicts_on(module: nn.Module) -> dict[str, Verdict]:
    inputs, calls = observe(module)
    profile = inspect_module(module, Factory(name="some:module", folder="."), calls)
    subject = OwnModule(module, profile, inputs)
    return {verdict.name: verdict for verdict in verdicts_of(subject, libraries=LIBRARIES)}


def configuration(name: str, targets: Any, rank: int = 8) -> peft.PeftConfig:
    match name:
        case "lora" | "dora" | "rslora":
            return peft.LoraConfig(
                r=rank, target_modules=targets, use_dora=name == "dora", use_rslora=name == "rslora"
            )
        case "adalora":
            plan = {"total_step": 100, "tinit": 5, "tfinal": 5}
            return peft.AdaLoraConfig(init_r=12, target_r=8, target_modules=targets, **plan)
        case "ia3":
            return peft.IA3Config(target_modules=targets, feedforward_modules=[])
        case "oft":
            return peft.OFTConfig(oft_block_size=2, target_modules=targets)
        case _:
            return peft.MissConfig(r=4, target_modules=targets)


def gets_a_gradient(module: nn.Module, config: peft.PeftConfig, run: Any) -> bool:
    """PEFT builds it, it takes a step, and something of the adapter gets a gradient."""
    try:
        wrapped = peft.get_peft_model(copy.deepcopy(module), config)
        run(wrapped).square().mean().backward()
    except Exception:  # noqa: BLE001 - PEFT raises what it likes
        return False
    return any(
        parameter.grad is not None
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad and ("adalora" not in name or "lora_E" in name)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_verdicts_on_random_modules_are_what_peft_does(seed: int) -> None:
    module = build(seed)
    verdicts = verdicts_on(module)
    inputs, _ = observe(module)
    assert inputs is not None
    names = [name for name, part in module.named_modules() if isinstance(part, ADAPTABLE)]
    for name in ("lora", "dora", "rslora", "adalora", "ia3", "oft", "miss"):
        possible = any(
            gets_a_gradient(module, configuration(name, [each], rank), inputs.call)
            for each in names
            for rank in (8, 48)
        )
        assert verdicts[name].supported == possible, (name, verdicts[name], module)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_named_can_be_given_to_peft_as_it_is(seed: int) -> None:
    module = build(seed)
    inputs, _ = observe(module)
    assert inputs is not None
    for name in ("lora", "adalora", "ia3"):
        verdict = verdicts_on(module)[name]
        if not verdict.supported:
            continue
        rank = 48 if "multiples" in (verdict.reason or "") else 8
        targets = verdict.where.pattern or list(verdict.where.modules)
        assert gets_a_gradient(module, configuration(name, targets, rank), inputs.call), verdict


def test_layers_that_no_call_reaches_are_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    verdict = verdicts_on(Net())["lora"]
    assert (verdict.support, verdict.where.modules) == (Support.PARTLY, ("used",))
    assert verdict.left_out == {"idle": NOT_REACHED}


def test_pytorchs_attention_is_adapted_as_a_whole_or_not_at_all() -> None:
    verdicts = verdicts_on(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True))
    assert verdicts["lora"].where.modules == ("linear1", "linear2", "self_attn")
    assert verdicts["lora"].support is Support.YES
    assert "self_attn.out_proj" in verdicts["adalora"].left_out
    assert "nn.MultiheadAttention reads its weight" in (verdicts["adalora"].reason or "")


def test_what_peft_has_nothing_for_is_refused() -> None:
    verdicts = verdicts_on(nn.LSTM(4, 8))
    assert {name for name, verdict in verdicts.items() if verdict.supported} == {"bitfit", "full"}
    assert verdicts["full"].support is Support.YES
    assert verdicts["full"].trainable_params == sum(p.numel() for p in nn.LSTM(4, 8).parameters())


def test_without_an_input_it_is_built_only_and_said() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, table: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.layer(table["rows"])

    verdict = verdicts_on(Net())["lora"]
    assert verdict.supported
    assert verdict.proof is Proof.BUILD
    assert "no step was taken" in (verdict.reason or "")


def transformers_model(folder: Path, **config: Any) -> tuple[ModelProfile, dict[str, Verdict]]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    task = natural_task(folder)
    profile = inspect_model(folder, source="some/model", revision=None, task=task, try_packing=False)
    subject, _ = subject_of(profile, task, folder)
    verdicts = verdicts_of(subject, libraries=LIBRARIES)
    return profile, {verdict.name: verdict for verdict in verdicts}


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_model_is_tried_on_few_layers_and_counted_on_all(tmp_path: Path) -> None:
    profile, verdicts = transformers_model(tmp_path / "llama", **LLAMA)
    assert [verdict.name for verdict in verdicts.values() if verdict.support is not Support.YES] == ["bitfit"]
    assert verdicts["bitfit"].reason == "The model has no biases."
    assert {verdict.proof for verdict in verdicts.values() if verdict.supported} == {Proof.STEP}
    assert verdicts["last-blocks"].where.trained == ("model.layers.11",)
    lora = verdicts["lora"]
    assert lora.where.modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    adapter = TransformersModel(profile, natural_task(Path(profile.path)), tmp_path).adapter(
        LORA, lora.where.modules
    )
    assert adapter is not None
    assert lora.trainable_params == trainable_parameters(adapter, profile)
    assert verdicts["full"].trainable_params == profile.parameters


@pytest.mark.filterwarnings("ignore")
def test_experts_that_a_method_leaves_out_are_told_of(tmp_path: Path) -> None:
    _, verdicts = transformers_model(
        tmp_path / "mixtral", **{**LLAMA, "model_type": "mixtral", "num_local_experts": 16}
    )
    assert verdicts["lora"].support is Support.YES
    assert verdicts["lora"].where.parameters
    assert verdicts["adalora"].support is Support.PARTLY
    assert "experts" in (verdicts["adalora"].reason or "")
    assert "does not work with use_dora" in (verdicts["dora"].reason or "")


@pytest.mark.filterwarnings("ignore")
def test_layers_of_a_class_of_their_own_are_not_quantized(tmp_path: Path) -> None:
    falcon = {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    _, verdicts = transformers_model(tmp_path / "falcon", **falcon)
    assert verdicts["lora"].support is Support.YES
    assert verdicts["lora-nf4"].support is Support.NO
    assert "replaces none of its layers" in (verdicts["lora-nf4"].reason or "")


def test_without_bitsandbytes_the_rest_goes_on() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs, calls = observe(module)
    profile = inspect_module(module, Factory(name="some:module", folder="."), calls)
    verdicts = {v.name: v for v in verdicts_of(OwnModule(module, profile, inputs), libraries=())}
    assert verdicts["lora"].supported
    assert (
        verdicts["lora-nf4"].reason == "Quantization needs the package bitsandbytes, which is not installed."
    )


NARROW = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
SMALL = {**NARROW, "vocab_size": 64}
LIBRARY: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": SMALL,
    "GPT2LMHeadModel": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "T5ForConditionalGeneration": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2},
    "DebertaV2ForSequenceClassification": {**SMALL, "pooler_hidden_size": 32},
    "MambaForCausalLM": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
    "FalconForCausalLM": SMALL,
    "OPTForCausalLM": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "ResNetForImageClassification": {"hidden_sizes": [16], "depths": [1], "embedding_size": 16},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARY)
def test_verdicts_on_transformers_models_are_what_peft_does(name: str, tmp_path: Path) -> None:
    kind: Any = getattr(transformers, name)
    config = kind.config_class(**LIBRARY[name])
    folder = tmp_path / "model"
    _, verdicts = transformers_model(folder, **config.to_dict() | {"architectures": [name]})
    config.decoder_start_token_id = 0
    model = kind(config)
    ids = torch.ones((2, 8), dtype=torch.long)
    inputs: dict[str, torch.Tensor] = {"input_ids": ids}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if "Image" in name:
        inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}

    def run(wrapped: Any) -> torch.Tensor:
        return wrapped(**inputs).logits

    for method in ("lora", "dora", "adalora", "ia3", "oft", "miss"):
        verdict = verdicts[method]
        linear = [each for each, part in model.named_modules() if isinstance(part, ADAPTED)]
        targets = list(verdict.where.modules) or linear
        works = bool(targets) and gets_a_gradient(model, configuration(method, targets), run)
        assert verdict.supported == works, (method, verdict)
