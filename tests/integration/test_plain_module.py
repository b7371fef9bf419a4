"""Plain modules run dry against the same step on real tensors, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rankwise import estimate_module
from rankwise.errors import InputError
from rankwise.optimizer.estimates.tape import STEP, Kind, Phase
from rankwise.runners.tensor_memory import TensorMemory, training_tensors

ROWS = 8


class Tagger(nn.Module):
    """Tied embeddings, a frozen part, a buffer, inputs by name, a dictionary for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 50)
        self.head.weight = self.embedding.weight
        self.norm = nn.LayerNorm(32).requires_grad_(False)
        self.register_buffer("scale", torch.ones(32))

    def forward(self, ids: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.norm(self.embedding(ids) * weights[..., None]) * self.scale
        return {"scores": self.head(found), "means": found.mean(1)}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def convolutions() -> nn.Module:
    blocks = [
        part
        for before, after in ((3, 16), (16, 32))
        for part in (
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def labelled() -> nn.Module:
    return Labelled()


class Labelled(nn.Module):
    """Its output names its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(2, 64)

    def forward(self, labels: torch.Tensor) -> Any:
        scores = self.scores(labels)
        return SimpleNamespace(loss=nn.functional.cross_entropy(scores, labels), scores=scores)


def cross_entropy(output: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, torch.zeros(len(output), dtype=torch.long))


def sums(output: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([part.sum() for part in output.values()]).sum()


MODULES: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "perceptron": (perceptron, [((ROWS, 64), "float32")], cross_entropy),
    "transformer": (encoder, [((ROWS, 24, 64), "float32")], None),
    "convolutions": (convolutions, [((ROWS, 3, 32, 32), "float32")], cross_entropy),
    "by name": (Tagger, {"ids": ((ROWS, 12), "int64"), "weights": ((ROWS, 12), "float32")}, None),
}


def real_peak_bytes(make: Callable[[], nn.Module], shapes: Any, loss: Any) -> int:
    """Of a second step, with the optimizer's state there."""
    module = make()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    loss = loss or (lambda output: output.sum() if isinstance(output, torch.Tensor) else sums(output))

    def step() -> None:
        if isinstance(shapes, dict):
            named = {
                name: torch.zeros(*shape, dtype=getattr(torch, d)) for name, (shape, d) in shapes.items()
            }
            result = loss(module(**named))
        else:
            given = [torch.zeros(*shape, dtype=getattr(torch, dtype)) for shape, dtype in shapes]
            result = loss(module(*given))
        result.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    memory = TensorMemory()
    with memory:
        memory.follow(training_tensors(module, optimizer))
        step()
    return memory.peak_bytes


@pytest.mark.parametrize("name", MODULES)
def test_a_module_needs_what_a_real_step_takes(name: str) -> None:
    make, shapes, loss = MODULES[name]
    need = estimate_module(make, shapes, loss=loss, device="cpu")
    assert max(need.by_phase[phase] for phase in STEP) == real_peak_bytes(make, shapes, loss)
    module = make()
    assert need.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert need.trainable_parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert estimate_module(module, shapes, loss=loss, device="cpu") == need, (
        "one that exists, as one that is made"
    )
    assert all(not parameter.is_meta and parameter.grad is None for parameter in module.parameters())


def test_on_cuda_workspaces_and_a_scaled_loss_are_added() -> None:
    make, shapes, loss = MODULES["perceptron"]
    need = estimate_module(make, shapes, loss=loss)
    assert need.reserved_bytes >= need.allocated_bytes > need.breakdown[Kind.WORKSPACE]
    assert need.breakdown[Kind.BASE_WEIGHTS] >= 4 * need.parameters
    assert Kind.ADAPTER not in need.breakdown
    half, bfloat = (
        estimate_module(make, shapes, loss=loss, autocast=dtype).by_phase[Phase.EVALUATION]
        for dtype in ("float16", "bfloat16")
    )
    assert half - bfloat == 2 * 512


def test_a_factory_is_found_by_its_name() -> None:
    found = estimate_module(f"{__name__}:labelled", {"labels": ((ROWS,), "int64")}, device="cpu")
    assert found == estimate_module(labelled, {"labels": ((ROWS,), "int64")}, device="cpu")
    assert found.trainable_parameters == 2 * 64


class Reader(nn.Module):
    """Looks at a number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given * self.factor if given.sum() > 0 else -given * self.factor


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        ("json:dumps", [], "cannot be built"),
        ("no.such.module:make", [], "ModuleNotFoundError"),
        (dict, [], "the factory gave dict"),
        (nn.Identity, [], "nothing to train"),
        (partial(nn.GRU, 4, 4), [((ROWS, 3, 4), "float32")], "recurrent layers"),
        (perceptron, [((ROWS, 63), "float32")], "cannot be run dry"),
        (perceptron, [((ROWS, 64), "float31")], "no dtype 'float31'"),
        (Reader, [((ROWS,), "float32")], "cannot be run dry"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_reason(module: Any, inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        estimate_module(module, inputs)
    assert caught.value.next_step
