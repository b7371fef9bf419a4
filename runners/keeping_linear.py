"""Linear layers as stage 3 of DeepSpeed computes them: they keep their inputs for the backward pass.

It puts a function of its own in the place of torch's (``memory_efficient_linear``, on by default;
``deepspeed/runtime/zero/linear.py`` of 0.19), which keeps the input of a frozen matrix as well. Here it is
without DeepSpeed, for dry runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional


class KeepingLinear(torch.autograd.Function):
    """``input @ weight.T + bias`` that keeps all of them."""

    @staticmethod
    def forward(
        ctx: Any, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Shapes as in :func:`torch.nn.functional.linear`."""
        ctx.save_for_backward(given, weight, bias)
        output = given.matmul(weight.t())
        return output if bias is None else output + bias

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of the input, the weight and the bias, where they are asked for."""
        (gradient,) = gradients
        given, weight, _ = ctx.saved_tensors
        of_input = gradient.matmul(weight) if ctx.needs_input_grad[0] else None
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = flat.t().matmul(given.reshape(-1, given.shape[-1]))
        of_bias = flat.sum(0) if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias


@contextmanager
def keeping_linear() -> Iterator[None]:
    """While active, every linear layer keeps its input."""
    before = functional.linear
    functional.linear = KeepingLinear.apply
    try:
        yield
    finally:
        functional.linear = before
