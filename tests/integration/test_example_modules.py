"""The example modules: each is called as it says, learns, and takes the adapter that suits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rankwise import estimate_module

TARGETS = {
    "atcnet": ["msa0", "msa1", "msa2", "dense0", "dense1", "dense2"],
    "ts2vec": ["input_projection", "blocks.3.projector", "blocks.0.conv1", "blocks.0.conv2"],
    "tide": ["dense_in", "dense_out"],
    "gpt_forecaster": ["c_attn"],
    "tiny_time_mixer": ["fc1", "fc2"],
    "patch_tst": ["q_proj", "v_proj"],
    "patch_tsmixer": ["fc1", "fc2"],
    "chronos_t5": ["q", "v"],
    "vit_heatmap": ["q_proj", "v_proj"],
}
ANSWERS = ("future_values", "labels")
STEPS = 8


def build(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pick(name).build()


def pick(name: str) -> Any:
    """The module's file, in which a folder that is first on the path would find it too."""
    import importlib

    return importlib.import_module(f"rankwise.examples.modules.{name}")


def loss_of(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return nn.functional.cross_entropy(output, torch.arange(len(output)))
    return output["loss"]


def losses_of_training(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[float]:
    """The same is dropped in each step, so that dropout cannot decide."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    module.train()
    for _ in range(STEPS):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = loss_of(module(**inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", TARGETS)
def test_module_learns(name: str) -> None:
    module = build(name)
    inputs = module.example_inputs
    assert all(len(tensor) == 2 for tensor in inputs.values())
    losses = losses_of_training(module, inputs)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TARGETS)
def test_lora_on_module_learns(name: str) -> None:
    module = build(name)
    inputs = module.example_inputs
    is_transposed = name == "gpt_forecaster"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name], fan_in_fan_out=is_transposed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(module, config)
    losses = losses_of_training(adapted, inputs)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TARGETS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    module = build(name)
    loss_of(module(**module.example_inputs)).backward()
    trained = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    assert not [key for key, parameter in trained.items() if parameter.grad is None]


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("atcnet", "ts2vec")])
def test_answer_is_not_needed_for_a_prediction(name: str) -> None:
    module = build(name).eval()
    inputs = {key: value for key, value in module.example_inputs.items() if key not in ANSWERS}
    (answer,) = (value for key, value in module.example_inputs.items() if key in ANSWERS)
    with torch.no_grad():
        output = module(**inputs)
    assert output.get("loss") is None
    found = output["logits"] if "logits" in output else output["prediction_outputs"]
    assert found.shape == answer.shape
    assert found.isfinite().all()


@pytest.mark.parametrize("name", TARGETS)
def test_step_is_estimated(name: str) -> None:
    """So it can be built on the meta device, and run without numbers."""
    shapes = {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for key, tensor in build(name).example_inputs.items()
    }
    need = estimate_module(pick(name).build, shapes, device="cpu")
    assert need.allocated_bytes > 4 * need.parameters > 0


def test_lora_cannot_follow_a_dilation() -> None:
    """PEFT (0.21) makes its own convolutions without it: all of TS2Vec's blocks but the first are out."""
    module = build("ts2vec")
    adapted = get_peft_model(module, LoraConfig(r=4, target_modules=["blocks.1.conv1"]))
    with pytest.raises(RuntimeError, match="must match the size"):
        adapted(**module.example_inputs)


def test_windows_of_atcnet_are_numbered() -> None:
    module = build("atcnet")
    names = {name.partition(".")[0] for name, _ in module.named_modules()}
    assert {f"{part}{number}" for part in ("msa", "dense", "tcn") for number in range(3)} <= names
    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(78_000, rel=0.1)
