"""Linear layers that keep their inputs compute what torch's do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rankwise.runners.keeping_linear import keeping_linear


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_values_and_gradients_are_those_of_torch(with_bias: bool, is_frozen: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4, bias=with_bias).requires_grad_(not is_frozen)
    found = []
    for keeps in (False, True):
        given = torch.ones(2, 3, 6).mul_(0.5).requires_grad_()
        layer.zero_grad()
        if keeps:
            with keeping_linear():
                output = layer(given)
        else:
            output = layer(given)
        output.square().sum().backward()
        found.append([output, given.grad, *(p.grad for p in layer.parameters() if not is_frozen)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_input_of_a_frozen_matrix_is_kept() -> None:
    layer = torch.nn.Linear(6, 4).requires_grad_(False)
    given = torch.randn(3, 6, requires_grad=True)
    kept: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(given)
        plain = [tensor.shape for tensor in kept]
        kept.clear()
        with keeping_linear():
            layer(given)
    assert given.shape not in plain
    assert given.shape in [tensor.shape for tensor in kept]


def test_torch_has_its_own_back() -> None:
    before = functional.linear
    with pytest.raises(ValueError, match="any"), keeping_linear():
        raise ValueError("any")
    assert functional.linear is before
