"""AdaLoRA's pruning of ranks, which PEFT leaves to the training loop to ask for.

Imports nothing of rankwise but :mod:`.build`, which is free of it too: it is part of what the exported script
is made of. A *tuner* is PEFT's ``AdaLoraModel``, the ``base_model`` of a wrapped model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .build import InvalidTrial

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Where PEFT's allocator keeps the importance of each entry and its running averages: name → tensor."""


def allocate_ranks(tuner: Any, step: int, *, skipped: bool) -> None:
    """Note how much each rank matters, and prune by plan. After the optimizer's step, gradients still there.

    A skipped step (gradients overflowed under float16) is left out: one infinite importance would stay in
    the averages. Once pruning is over no gradient is looked at.

    Args:
        step: number of the optimizer step, from 0.

    Raises:
        InvalidTrial: an adapter is outside the forward path (PEFT's own penalty moves its A and B all the
            same, so that only the missing gradient of E tells), or all steps before the last pruning were
            skipped.
    """
    config = tuner.peft_config[tuner.trainable_adapter_name]
    last_pruning = config.total_step - config.tfinal
    if step == last_pruning and not tuner.rankallocator.ipt:
        raise InvalidTrial(f"no rank can be pruned: gradients overflowed in all of the first {step} steps")
    if step < last_pruning:
        if skipped:
            return
        for name, parameter in tuner.model.named_parameters():
            if "lora_" in name and parameter.requires_grad and parameter.grad is None:
                raise InvalidTrial(f"no gradient reaches {name}: it is outside the forward path")
    tuner.update_and_allocate(step)


def pruned_away(tuner: Any) -> set[str]:
    """Names of the E of matrices that have lost every rank; these are zero, as at the start."""
    pattern = tuner.peft_config[tuner.trainable_adapter_name].rank_pattern or {}
    return {name for name, kept in pattern.items() if not any(kept)}


def rank_tensors(tuner: Any) -> Iterator[torch.Tensor]:
    """What the allocator keeps between steps: three times the adapter."""
    for name in AVERAGES:
        yield from getattr(tuner.rankallocator, name).values()


def rank_state(tuner: Any) -> dict[str, Any]:
    """What a checkpoint needs beside the weights for pruning to go on: tensors and plain data."""
    config = tuner.peft_config[tuner.trainable_adapter_name]
    return {
        "rank_pattern": config.rank_pattern,
        **{name: dict(getattr(tuner.rankallocator, name)) for name in AVERAGES},
    }


def restore_ranks(tuner: Any, state: Mapping[str, Any]) -> None:
    """Put back what :func:`rank_state` gave. The adapter must have its full shapes, pruned entries zero."""
    tuner.peft_config[tuner.trainable_adapter_name].rank_pattern = state["rank_pattern"]
    for name in AVERAGES:
        setattr(tuner.rankallocator, name, dict(state[name]))
