"""Modules that a factory makes, for those who look at them before any training. Knows nothing of adapters."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError
from ..optimizer.codec import to_json
from ..probes.profiles import Factory
from .weights import make_module


def made_by(factory: Factory, *, seed: int = 0) -> Any:
    """The module, as trials of this seed get it.

    Raises:
        ModelError: the code cannot be imported, fails, or makes no module.
    """
    torch.manual_seed(seed)
    try:
        return make_module(to_json(factory))
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the factory {factory.name} fails ({type(error).__name__}: {reason:.300})",
            next_step=f"call it in Python, in {factory.folder}, with the arguments {factory.arguments}",
        ) from error
