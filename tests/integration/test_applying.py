"""A recommendation applied to the user's own module, and the examples that do so, run as they are."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import rankwise
from rankwise.errors import InputError
from rankwise.examples import plain_pytorch
from rankwise.examples.modules import atcnet, gpt_forecaster, tide, vit_heatmap
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.probes.profiles import TaskKind

REPOSITORY = Path(__file__).parents[2]
LORA = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("dense_in", "dense_out"))


def write_recommendation(
    folder: Path, adapter: Adapter = LORA, kind: TaskKind = TaskKind.REGRESSION, **settings: Any
) -> Path:
    """The two files that are read, as `rankwise recommend --out` writes them."""
    candidate = Candidate(
        adapter=adapter,
        level=Level(**settings),
        recipe=Recipe(max_length=64, weight_decay=0.1),
        micro_batch=4,
        learning_rate=1e-2,
    )
    folder.mkdir(exist_ok=True)
    form = {"id": candidate.id, "description": candidate.describe(), **to_json(candidate)}
    (folder / "recommendation.json").write_text(json.dumps({"schema_version": 1, "recommended": form}))
    config = adapter_config(candidate, task_kind=kind, base_model="lab.models:make", total_steps=100)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def losses_of(model: nn.Module, inputs: dict[str, torch.Tensor], folder: Path, steps: int = 4) -> list[float]:
    optimizer = rankwise.optimizer_for(model, folder)
    losses = []
    model.train()
    for _ in range(steps):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = model(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_adapter_on_a_plain_module(tmp_path: Path) -> None:
    """Of a task too for which PEFT has a class of its own, which expects transformers' models."""
    folder, module = write_recommendation(tmp_path), tide.build()
    inputs = module.example_inputs
    model = rankwise.apply(module, folder)
    assert trained_names(model)
    assert all(".lora_" in name for name in trained_names(model))
    losses = losses_of(model, inputs, folder)
    assert losses[-1] < losses[0]


def test_a_folder_in_which_an_adapter_was_saved_still_recommends(tmp_path: Path) -> None:
    folder = write_recommendation(tmp_path)
    rankwise.apply(tide.build(), folder).save_pretrained(folder, save_embedding_layers=False)
    assert json.loads((folder / "adapter_config.json").read_text())["inference_mode"] is True
    assert trained_names(rankwise.apply(tide.build(), folder))


def test_optimizer_has_what_is_trained_and_what_was_recommended(tmp_path: Path) -> None:
    folder = write_recommendation(tmp_path)
    model = rankwise.apply(tide.build(), folder / "recommendation.json")
    optimizer = rankwise.optimizer_for(model, folder)
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("kind", [Quantization.NF4, Quantization.FP4, Quantization.INT8])
def test_quantized_beneath_the_adapter(kind: Quantization, tmp_path: Path) -> None:
    adapter = Adapter(
        method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"), trained_modules=("head",)
    )
    folder, module = write_recommendation(tmp_path, adapter, quantization=kind), vit_heatmap.build()
    inputs = module.example_inputs
    model = rankwise.apply(module, folder, skip=["mlp"])
    layer = module.backbone.layers[0]
    stored = "Int8Params" if kind is Quantization.INT8 else "Params4bit"
    assert type(layer.attention.q_proj.base_layer.weight).__name__ == stored
    assert type(layer.attention.k_proj.weight).__name__ == stored
    assert type(layer.mlp.fc1) is nn.Linear
    assert any("head" in name for name in trained_names(model))
    losses = losses_of(model, inputs, folder)
    assert losses[-1] < losses[0]


def test_without_bitsandbytes_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    folder = write_recommendation(tmp_path, quantization=Quantization.NF4)
    with pytest.warns(UserWarning, match="bitsandbytes is not installed: weights stay as they are"):
        model = rankwise.apply(tide.build(), folder)
    assert all(".lora_" in name for name in trained_names(model))
    assert not any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters())


def test_full_fine_tuning_leaves_the_module_as_it_is(tmp_path: Path) -> None:
    module = tide.build()
    model = rankwise.apply(module, write_recommendation(tmp_path, Adapter(method=Method.FULL)))
    assert model is module
    assert len(trained_names(model)) == len(list(module.parameters()))


def test_frozen_variants(tmp_path: Path) -> None:
    adapter = Adapter(method=Method.HEAD, trained_modules=("dense0", "dense1", "dense2"))
    module = atcnet.build()
    model = rankwise.apply(module, write_recommendation(tmp_path, adapter))
    assert model is module
    assert {name.partition(".")[0] for name in trained_names(model)} == {"dense0", "dense1", "dense2"}


def test_transposed_layers(tmp_path: Path) -> None:
    adapter = Adapter(method=Method.IA3, targets=("c_attn", "c_fc"), feedforward=("c_fc",))
    folder, module = write_recommendation(tmp_path, adapter), gpt_forecaster.build()
    inputs = module.example_inputs
    losses = losses_of(rankwise.apply(module, folder), inputs, folder)
    assert losses[-1] < losses[0]


def test_model_of_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    """As a trial has it: PEFT's class for the task, checkpointing, and a head that is not quantized."""
    adapter = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"))
    folder = write_recommendation(
        tmp_path,
        adapter,
        TaskKind.CAUSAL_LM,
        quantization=Quantization.NF4,
        gradient_checkpointing=True,
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model: Any = rankwise.apply(base, folder)
    assert type(model).__name__ == "PeftModelForCausalLM"
    assert base.is_gradient_checkpointing
    assert type(base.lm_head) is nn.Linear
    ids = torch.randint(0, 900, (2, 16))
    losses = losses_of(model, {"input_ids": ids, "labels": ids}, folder)
    assert losses[-1] < losses[0]


def refusal(module: nn.Module, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        rankwise.apply(module, folder, **options)
    return str(raised.value)


def test_what_does_not_fit_is_one_error(tmp_path: Path) -> None:
    folder = write_recommendation(tmp_path / "one", quantization=Quantization.NF4)
    message = refusal(vit_heatmap.build(), folder)
    assert "the module has nothing called dense_in, dense_out" in message
    message = refusal(tide.build(), folder, skip=["densein"])
    assert "no module is called 'densein', which is to skip: did you mean dense_in" in message
    head = Adapter(method=Method.HEAD, trained_modules=("classifier",))
    assert "nothing called classifier" in refusal(tide.build(), write_recommendation(tmp_path / "two", head))
    misshapen = Adapter(method=Method.MISS, rank=64, targets=("dense_in",))
    message = refusal(tide.build(), write_recommendation(tmp_path / "three", misshapen))
    assert "PEFT cannot put MISS on this module" in message
    module = rankwise.apply(tide.build(), folder)
    assert "has an adapter already" in refusal(module, folder)
    with pytest.raises(InputError, match="cannot be read"):
        rankwise.apply(tide.build(), tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing of the model is trained"):
        rankwise.optimizer_for(tide.build().requires_grad_(False), folder)


def test_plain_pytorch_example(tmp_path: Path) -> None:
    folder = write_recommendation(tmp_path / "recommendation")
    losses = plain_pytorch.main([str(folder), "--steps", "12", "--out", str(tmp_path / "trained")])
    assert losses[-1] < losses[0]
    assert all(".lora_" in name for name in load_file(tmp_path / "trained" / "adapter_model.safetensors"))


@pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="lightning is not installed: pip install lightning"
)
def test_lightning_example(tmp_path: Path) -> None:
    folder = write_recommendation(tmp_path / "recommendation")
    command = [sys.executable, "-m", "examples.lightning_module", str(folder), "--steps", "12"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "trained")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "after 12 steps" in result.stdout
    assert (tmp_path / "trained" / "adapter_model.safetensors").is_file()
    checkpoint = torch.load(tmp_path / "trained" / "lightning.ckpt", weights_only=True)
    assert checkpoint["state_dict"]
    assert all(".lora_" in name for name in checkpoint["state_dict"])
