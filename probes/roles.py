"""The matrices of a model, and what part each plays: queries, an MLP's output, a router, a head, …

Reads shapes and names from a built model (the meta device suffices), so it imports torch and runs in a
child of the warm server. Knows nothing of files, tasks or adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .profiles import ModuleProfile

_ROLES = tuple(
    (role, re.compile(rf"(.*\.)?({names})"))
    for role, names in (
        # DeepSeek's kv_* make keys and values of one compressed vector: fused as far as targets go.
        (
            "qkv",
            r"c_attn|query_key_value|qkv_proj|qkv|Wqkv|self\.in_proj|kv_a_proj_with_mqa|kv_b_proj",
        ),
        ("query", r"q_proj|q_a_proj|q_b_proj|query|query_proj|q_lin|\w*[aA]tt\w*\.q"),
        ("key", r"k_proj|key|key_proj|k_lin|\w*[aA]tt\w*\.k"),
        ("value", r"v_proj|value|value_proj|v_lin|\w*[aA]tt\w*\.v"),
        ("attention_output", r"o_proj|out_lin|\w*[aA]tt\w*\.(output\.dense|dense|c_proj|out_proj|Wo|o)"),
        ("router", r"router(\.\w+)*|shared_expert_gate"),
        ("mlp_gate", r"gate_proj|wi_0"),
        (
            "mlp_in",
            r"up_proj|gate_up_proj|intermediate\.dense|fc1|fc_in|lin1|c_fc|dense_h_to_4h|ffn|Wi|wi|wi_1"
            r"|ff\.layer_1",
        ),
        (
            "mlp_out",
            r"down_proj|output\.dense|fc2|fc_out|lin2|mlp\.c_proj|dense_4h_to_h|ffn_output|Wo|wo|ff\.layer_2",
        ),
    )
)
"""(role, how module names of that role end); the first that matches holds."""


def module_profiles(model: Any) -> tuple[ModuleProfile, ...]:
    """Return every module that owns a matrix, and every parameter that stacks the matrices of experts.

    A parameter that several modules share counts for the first of them only.
    """
    return tuple(_profiles(model))


def in_body(model: Any, name: str) -> bool:
    """Whether the module is part of the base model rather than of what a task puts on top."""
    return model.base_model is model or name.startswith(f"{model.base_model_prefix}.")


def layer_of(model: Any, name: str) -> int | None:
    """The first number in the module's path: layers come before experts."""
    if not in_body(model, name):
        return None
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _profiles(model: Any) -> Iterator[ModuleProfile]:
    output = model.get_output_embeddings()
    names = {name for name, _ in model.named_modules()}
    counted: set[int] = set()
    for name, module in model.named_modules():
        yield from _experts(model, name, module)
        match module:
            case nn.Linear():
                kind, sizes = "linear", (module.in_features, module.out_features)
            case Conv1D():
                kind, sizes = "conv1d", (module.nx, module.nf)
            case nn.Embedding():
                kind, sizes = "embedding", (module.num_embeddings, module.embedding_dim)
            case _ if _is_router(name, module, names):
                kind, sizes = "parameter", (module.weight.shape[1], module.weight.shape[0])
            case _:
                continue
        if kind == "embedding":
            role = "other"
        elif module is output or not in_body(model, name):
            role = "head"
        else:
            role = "router" if _is_router(name, module, names) else _role(name)
        own = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
        yield ModuleProfile(
            name=name,
            kind=kind,
            role=role,
            in_features=sizes[0],
            out_features=sizes[1],
            parameters=sum(size for key, size in own.items() if key not in counted),
            layer=layer_of(model, name),
        )
        counted |= own.keys()


def _experts(model: Any, name: str, module: Any) -> Iterator[ModuleProfile]:
    """The parameters of a module that hold one matrix for each expert."""
    hidden_size = model.config.get_text_config().hidden_size if "expert" in name else None
    for own, parameter in module.named_parameters(recurse=False):
        if hidden_size is None or parameter.dim() != 3:
            continue
        role = _role(own)
        matrices, out_features, in_features = parameter.shape
        if _is_transposed(module, role, parameter.shape, hidden_size):
            in_features, out_features = out_features, in_features
        yield ModuleProfile(
            name=f"{name}.{own}",
            kind="experts",
            role=role,
            in_features=in_features,
            out_features=out_features,
            parameters=parameter.numel(),
            layer=layer_of(model, name),
            matrices=matrices,
        )


def _is_transposed(module: Any, role: str, shape: tuple[int, ...], hidden_size: int) -> bool:
    """The matrices are stored as in × out, not as ``nn.Linear`` has them.

    transformers says so for most models; for the rest, whichever side is as wide as the model tells.
    """
    told: bool | None = getattr(module, "is_transposed", None)
    if told is not None:
        return told
    _, first, last = shape
    narrow, wide = (last, first) if role == "mlp_in" else (first, last)
    return wide == hidden_size != narrow


def _is_router(name: str, module: Any, names: set[str]) -> bool:
    """It scores the experts beside it: a linear layer, or a module with such a matrix of its own."""
    parent, _, own = name.rpartition(".")
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        return False
    return _role(name) == "router" or (own in ("gate", "wg") and f"{parent}.experts" in names)


def _role(name: str) -> str:
    return next((role for role, pattern in _ROLES if pattern.fullmatch(name)), "other")
