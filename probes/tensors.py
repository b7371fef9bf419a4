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
from .roles import layer_of

_NORM = re.compile(r".*norm.*|.*_ln|ln(_?\w+)?", re.IGNORECASE)
"""How classes or names of norms read; those of transformers are classes of their own (``LlamaRMSNorm``)."""

_BIAS = re.compile(r"(.*_)?bias(_.*)?")


def tensor_profiles(model: Any) -> tuple[TensorProfile, ...]:
    """Return every parameter, shared ones once and by their first name, as training loops meet them."""
    norms = {f"{name}." for name, module in model.named_modules() if _is_norm(name, module)}
    return tuple(_profiles(model, norms))


def _profiles(model: Any, norms: set[str]) -> Iterator[TensorProfile]:
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        if f"{owner}." in norms:
            kind = "norm"
        elif _BIAS.fullmatch(own) and parameter.dim() <= 2:  # experts stack theirs
            kind = "bias"
        else:
            kind = "matrix" if parameter.dim() > 1 else "vector"
        yield TensorProfile(
            name=name, kind=kind, parameters=parameter.numel(), layer=layer_of(model, name.rpartition(".")[0])
        )


def _is_norm(name: str, module: nn.Module) -> bool:
    """It owns nothing but vectors, a weight among them, and is called so."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own or any(parameter.dim() != 1 for parameter in own.values()):
        return False
    return bool(_NORM.fullmatch(type(module).__name__) or _NORM.fullmatch(name.rpartition(".")[2]))
