"""FSDP1, as torch has it, does under re-entrant checkpointing what ``sharding.py`` says of it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

LAYERS, WIDTH = 5, 8


class Layer(torch.nn.Module):
    """A linear layer, which notes what is there when it is recomputed."""

    def __init__(self, seen: list[weakref.ref[torch.Tensor]], trained: bool) -> None:
        super().__init__()
        self.base = torch.nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(trained)
        self.adapter = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.seen = seen

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.seen.append(weakref.ref(given))
        return self.base(given) + self.adapter(given)


class Model(torch.nn.Module):
    """Layers, each recomputed; counts after each how many inputs, and gradients of inputs, are there."""

    def __init__(self, *, trained: bool, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.seen: list[weakref.ref[torch.Tensor]] = []
        self.layers = torch.nn.ModuleList(Layer(self.seen, trained) for _ in range(LAYERS))
        self.counts: list[tuple[int, int]] = []
        self.gathered: list[int] = []

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        hidden = given.requires_grad_()
        for layer in self.layers:
            hidden = checkpoint(layer.__call__, hidden, use_reentrant=self.reentrant)
            hidden.register_hook(self.count)
        return hidden.sum()

    def count(self, _: torch.Tensor) -> None:
        there = [tensor for each in self.seen if (tensor := each()) is not None]
        self.counts.append((len(there), sum(tensor.is_leaf and tensor.grad is not None for tensor in there)))
        units = [layer for layer in self.layers if isinstance(layer, FullyShardedDataParallel)]
        whole = [unit._handle.flat_param._full_param_padded for unit in units]
        self.gathered.append(sum(flat.untyped_storage().size() > 0 for flat in whole))


@pytest.fixture
def ranks() -> Iterator[None]:
    """A group of two ranks, of which one runs and the other is made up."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


def stepped(*, trained: bool, reentrant: bool = True) -> Model:
    """The model after two steps; counts are those of the second."""

    def has_own_unit(module: Any) -> bool:
        # What trains beside frozen weights is a unit of its own, as PEFT's policy has it.
        return isinstance(module, Layer) or (
            not trained and getattr(module, "weight", None) is not None and module.weight.requires_grad
        )

    model = Model(trained=trained, reentrant=reentrant)
    policy = functools.partial(lambda_auto_wrap_policy, lambda_fn=has_own_unit)
    unit = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
    )
    for _ in range(2):
        model.counts.clear()
        model.gathered.clear()
        unit(torch.ones(2, WIDTH)).backward()
    return model


@pytest.mark.usefixtures("ranks")
def test_frozen_units_keep_inputs_and_their_gradients() -> None:
    model = stepped(trained=False)
    assert model.counts == [(done, done) for done in range(LAYERS)]
    assert not [each for each in model.seen if each() is not None]


@pytest.mark.usefixtures("ranks")
def test_trained_units_keep_neither() -> None:
    assert set(stepped(trained=True).counts) == {(0, 0)}


@pytest.mark.usefixtures("ranks")
def test_frozen_layers_of_fsdp_2_keep_neither() -> None:
    model = Model(trained=False, reentrant=True)
    mesh = init_device_mesh("cpu", (2,))
    for layer in [*model.layers, model]:
        fully_shard(layer, mesh=mesh)
    model(torch.ones(2, WIDTH)).backward()
    assert model.counts == [(0, 0)] * LAYERS


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("trained", [False, True])
def test_no_unit_is_gathered_ahead(*, trained: bool) -> None:
    # Between layers: what was computed is released, what comes next is not there yet.
    assert set(stepped(trained=trained).gathered) == {0}
    # Where it is not re-entrant, two are there at a time.
    assert max(stepped(trained=trained, reentrant=False).gathered) == 2
