"""A stand-in for Liger's fused loss, whose kernels need a GPU: it allocates and multiplies what they do.

Knows nothing of the values: what it computes is of no use but to a dry run.
"""

from __future__ import annotations

from typing import Any

import torch

from .losses import ChunkedLoss
from .recipe import IGNORED_LABEL


class FusedLossStandIn(ChunkedLoss):
    """Lets a causal language model compute its loss as with ``LigerForCausalLMLoss`` (liger-kernel 0.8.5)."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, *sizes: Any, **options: Any) -> torch.Tensor:
        """The sum over tokens; ``logits`` are hidden states, (rows, length, width)."""
        if not torch.is_grad_enabled():
            plain: torch.Tensor = self.plain_loss(logits, labels, *sizes, **options)
            return plain
        hidden = logits.reshape(-1, logits.shape[-1])
        shifted = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous()
        apply: Any = _FusedLoss.apply
        loss: torch.Tensor = apply(hidden, self.head.weight, shifted.view(-1))
        return loss


class _FusedLoss(torch.autograd.Function):
    """Gradients come with the forward pass, from as many tokens at a time as make logits of the input's size.

    After ``fused_linear_cross_entropy_forward``, as it runs on GPUs of compute capability 8.0 or higher.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(tokens, width), (vocabulary, width), (tokens,) → a number."""
        tokens, width = hidden.shape
        vocabulary = weight.shape[0]
        times = -(-vocabulary // width)
        chunk = min(tokens, 1 << (-(-tokens // times) - 1).bit_length())
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32)
        (targets != IGNORED_LABEL).sum()
        computed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        in_place = hidden.dtype == weight.dtype == computed
        storage = torch.empty((chunk, vocabulary), dtype=hidden.dtype) if in_place else None
        for start in range(0, tokens, chunk):
            piece = hidden[start : start + chunk]
            if storage is not None:
                logits = torch.mm(piece, weight.t(), out=storage[: len(piece)])
            else:
                logits = piece @ weight.t()
            logits.mul_(1)  # the kernel reads logits and leaves their gradients in their place
            if in_place:
                torch.mm(logits, weight, out=grad_hidden[start : start + chunk])
            else:
                grad_hidden[start : start + chunk] = logits @ weight
            if grad_weight is not None:
                same = piece.to(logits.dtype)
                if grad_weight.dtype == logits.dtype:
                    torch.addmm(grad_weight, logits.t(), same, out=grad_weight)
                else:
                    add_product(grad_weight, logits, same)
                del same
            del logits, piece
        del storage
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, _: Any) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """What the forward pass left, scaled where it is."""
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_hidden.mul_(1)
        if grad_weight is not None:
            grad_weight.mul_(1)
        return grad_hidden, grad_weight, None


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += leftᵀ @ right`` in float32 without a temporary, as CUDA can (``addmm``, ``out_dtype``).

    One column stands for all: memory is right, the operations of the head's gradient are left out.
    """
    part = total[:, :1]
    part.add_(torch.mm(left.t(), right[:, :1]).to(total.dtype))
