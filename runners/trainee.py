"""A model made ready to train by whatever loop: built, with its loss set, on its device.

Imports nothing of rankwise but :mod:`.build` and :mod:`.losses`, which are free of it too: it is part of what
the exported programs are made of. Knows nothing of optimizers, steps and data.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from .build import autocast_name, build_model
from .losses import set_loss


@dataclass(frozen=True, slots=True)
class Trainee:
    """What training and judging a model need to know of it."""

    model: Any
    candidate: Mapping[str, Any]
    pad_id: int
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Around each forward pass; changes nothing where the level computes in the weights' own dtype."""
        return autocast_on(self.device, self.candidate["level"])

    @property
    def tuner(self) -> Any | None:
        """PEFT's model around the base where ranks are to be pruned (AdaLoRA), else None."""
        return self.model.base_model if self.candidate["adapter"]["method"] == "adalora" else None


def open_trainee(
    model_path: str,
    *,
    task: Mapping[str, Any],
    candidate: Mapping[str, Any],
    adapter_config: Mapping[str, Any] | None,
    pad_id: int,
    seed: int,
    device: torch.device,
    has_weights: bool = True,
    trust_remote_code: bool = False,
    factory: Mapping[str, Any] | None = None,
) -> Trainee:
    """Build the model, and set its loss and its compiling as the level says.

    Raises:
        InvalidTrial: model or device cannot do that.
    """
    level = candidate["level"]
    model = build_model(
        model_path,
        task=task,
        candidate=candidate,
        adapter_config=adapter_config,
        pad_id=pad_id,
        seed=seed,
        device=device,
        has_weights=has_weights,
        trust_remote_code=trust_remote_code,
        factory=factory,
    )
    with autocast_on(device, level):
        set_loss(model, level["loss"], device=device)
    if level["compile"]:
        model.compile()
    return Trainee(model, candidate, pad_id, device)


def autocast_on(device: torch.device, level: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """torch's autocast where the level wants it, as accelerate would set it."""
    dtype = getattr(torch, level["compute_dtype"])
    return torch.autocast(device.type, dtype=dtype, enabled=autocast_name(level) != "no")
