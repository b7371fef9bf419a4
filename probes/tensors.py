"""Every parameter of a model by its name: which are norms' and which are biases, beside all others.

Reads a built model (the meta device suffices), so it imports torch and runs in a child of the warm server.
Knows nothing of what matrices are for (``roles.py``) or of adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from .profiles import TensorProfile
from .roles import in_body, is_of_transformers
from .structure import block_numbers

_NORM = re.compile(r".*norm.*|.*_ln|ln(_?\w+)?", re.IGNORECASE)
"""How classes or names of norms read; those of transformers are classes of their own (``LlamaRMSNorm``)."""

_BIAS = re.compile(r"(.*_)?bias(_.*)?")


def tensor_profiles(model: Any) -> tuple[TensorProfile, ...]:
    """Return every parameter, shared ones once and by their first name, as training loops meet them."""
    return tuple(_profiles(model))


def _profiles(model: Any) -> Iterator[TensorProfile]:
    norms = {name for name, module in model.named_modules() if _is_norm(name, module)}
    stacked = None if is_of_transformers(model) else block_numbers(model)
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        if owner in norms:
            kind = "norm"
        elif _BIAS.fullmatch(own) and parameter.dim() <= 2:  # experts stack theirs
            kind = "bias"
        else:
            kind = "matrix" if parameter.dim() > 1 else "vector"
        found = (
            block
            for block in _blocks_around(name)
            if (block in stacked if stacked is not None else block.rpartition(".")[2].isdigit())
        )
        block = next(found, None) if in_body(model, name) else None
        yield TensorProfile(name=name, kind=kind, parameters=parameter.numel(), block=block)


def _blocks_around(name: str) -> Iterator[str]:
    """The blocks around a parameter, outermost first."""
    parts = name.split(".")[:-1]
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _is_norm(name: str, module: nn.Module) -> bool:
    """It owns nothing but vectors, a weight among them, and is called so."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own or any(parameter.dim() != 1 for parameter in own.values()):
        return False
    return bool(_NORM.fullmatch(type(module).__name__) or _NORM.fullmatch(name.rpartition(".")[2]))
