"""Ways to compute a language model's loss that need less memory than the logits of a whole batch.

Imports nothing of rankwise but :mod:`.build` and :mod:`.recipe`, which are free of it too: it is part of what
the exported script is made of.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .build import InvalidTrial
from .recipe import IGNORED_LABEL

CHUNK_BYTES = 2**27
"""Float32 logits that exist at a time: 1,024 tokens of a vocabulary of 32,768."""

TRIED_TOKENS = 8

LIGER_PARTS = ("rope", "rms_norm", "layer_norm", "swiglu", "geglu", "cross_entropy")
"""What Liger would replace beside the loss."""


def set_loss(model: Any, name: str, *, device: torch.device) -> None:
    """Make the model, wrapped in an adapter or not, compute its loss as the level says.

    Raises:
        InvalidTrial: this model or device cannot.
    """
    if name == "plain":
        return
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if name == "liger":
        set_liger_loss(base, device=device)
    else:
        ChunkedLoss(base).try_out(device)


def set_liger_loss(base: Any, *, device: torch.device) -> None:
    """Let Liger's kernel compute logits and cross entropy in one go; the rest of the model stays as it is."""
    if device.type == "cpu":
        raise InvalidTrial("the loss liger needs a GPU: its kernels are written in Triton")
    if importlib.util.find_spec("liger_kernel") is None:
        raise InvalidTrial("the loss liger needs the package liger-kernel, which is not installed")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.integrations.liger import apply_liger_kernel

    if base.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InvalidTrial(f"liger-kernel knows no model of type {base.config.model_type}")
    parts = dict.fromkeys(LIGER_PARTS, False)
    apply_liger_kernel(base, {**parts, "fused_linear_cross_entropy": True})


class ChunkedLoss:
    """Lets a causal language model compute logits and cross entropy a piece at a time.

    Where gradients are asked for, the head hands on the hidden states as they are, and the model's loss
    function, which gets them as "logits", applies the head piece by piece; each piece is computed anew in
    the backward pass. The value is that of transformers' ``ForCausalLMLoss`` up to rounding.
    Without gradients (evaluation) everything is as before.
    """

    def __init__(self, base: Any) -> None:
        self.base = base
        self.head = base.get_output_embeddings()
        if self.head is None:
            raise InvalidTrial(f"the loss cannot be chunked: {type(base).__name__} has no output embeddings")
        self.project = self.head.forward
        self.plain_loss = base.loss_function
        self.trying = False
        self.handed_on: torch.Tensor | None = None
        self.met_again = False
        self.head.forward = self.hand_on
        base.loss_function = self.loss

    def try_out(self, device: torch.device) -> None:
        """Run a few tokens, to see that hidden states pass from head to loss unchanged.

        Some models scale or cap their logits in between, or compute their loss without the function.
        """
        tokens = torch.arange(TRIED_TOKENS, device=device)[None]
        self.trying = True
        self.base.eval()  # dropout would use up random numbers
        self.base(input_ids=tokens, labels=tokens)
        self.base.train()
        self.trying, self.handed_on = False, None
        if not self.met_again:
            raise InvalidTrial(
                f"the loss cannot be chunked: {type(self.base).__name__} changes its logits between head and "
                "loss, or has a loss of its own"
            )

    def hand_on(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head's forward pass, put off where gradients are asked for."""
        if not torch.is_grad_enabled():
            return self.project(hidden)
        if self.trying:
            self.handed_on = hidden
        return hidden

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, *sizes: Any, **options: Any) -> torch.Tensor:
        """Mean cross entropy over the tokens that are scored; ``logits`` are hidden states.

        Some models pass the vocabulary's size by its place, others by its name.
        """
        if not torch.is_grad_enabled():
            plain: torch.Tensor = self.plain_loss(logits, labels, *sizes, **options)
            return plain
        if self.trying:
            self.met_again = logits is self.handed_on
        hidden, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        tokens = max(1, CHUNK_BYTES // (4 * self.base.config.get_text_config().vocab_size))
        total = hidden.new_zeros((), dtype=torch.float32)
        for piece, targets in zip(hidden.split(tokens), wanted.split(tokens), strict=True):
            total = total + checkpoint(self.piece_loss, piece, targets, use_reentrant=False)
        return total / (wanted != IGNORED_LABEL).sum()

    def piece_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed cross entropy of some tokens."""
        logits = self.project(hidden).float()
        return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="sum")
