"""The matrices of a model, and what part each plays: queries, an MLP's output, a router, a head, …

Names that published models use come first, then what :mod:`.structure` tells of any other. The meta device
suffices; imports torch, so it runs in a child of the warm server. Knows nothing of files, tasks or adapters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .profiles import ModuleProfile
from .structure import Call, block_numbers, structural_roles

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


def module_profiles(model: nn.Module, calls: Sequence[Call] = ()) -> tuple[ModuleProfile, ...]:
    """Return every module that owns a matrix, and every parameter that stacks the matrices of experts.

    A parameter that several modules share counts for the first of them only.

    Args:
        model: of transformers, or any other module.
        calls: of a run that was watched, where there was one.
    """
    return tuple(_profiles(model, calls))


def is_of_transformers(model: Any) -> bool:
    """It tells of itself what other modules do not: its body, its output embeddings, its configuration."""
    return isinstance(model, PreTrainedModel)


def in_body(model: Any, name: str) -> bool:
    """Whether the module is part of the base model rather than of what a task puts on top."""
    return (
        not is_of_transformers(model)
        or model.base_model is model
        or name.startswith(f"{model.base_model_prefix}.")
    )


def layer_of(model: Any, name: str) -> int | None:
    """The first number in the module's path: layers come before experts."""
    if not in_body(model, name):
        return None
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _profiles(model: Any, calls: Sequence[Call]) -> Iterator[ModuleProfile]:
    told = is_of_transformers(model)
    output = model.get_output_embeddings() if told else None
    names = {name for name, _ in model.named_modules()}
    places = structural_roles(model, calls)
    layers = {} if told else block_numbers(model)
    counted: set[int] = set()
    parts = {
        f"{name}.out_proj"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    for name, module in model.named_modules():
        if told:
            yield from _experts(model, name, module)
        shape = _shape_of(module)
        is_router = _is_router(name, module, names)
        if shape is None and is_router:
            shape = _Shape("parameter", module.weight.shape[1], module.weight.shape[0])
        if shape is None:
            continue
        if shape.kind == "embedding":
            role = "other"
        elif module is output or not in_body(model, name) or _is_named_head(model, name, told=told):
            role = "head"
        elif shape.kind == "convolution":
            role = "head" if not told and places.get(name) == "head" else "other"
        elif is_router:
            role = "router"
        else:
            role = _role_of(name, places.get(name), told=told)
        own = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
        yield ModuleProfile(
            name=name,
            kind="attention-part" if name in parts else shape.kind,
            role=role,
            in_features=shape.in_features,
            out_features=shape.out_features,
            parameters=sum(size for key, size in own.items() if key not in counted),
            layer=layer_of(model, name) if told else _block_of(name, layers),
            taps=shape.taps,
            groups=shape.groups,
            is_plain=isinstance(module, Conv1D) or type(module).__module__.startswith("torch.nn."),
        )
        counted |= own.keys()


def _is_named_head(model: Any, name: str, *, told: bool) -> bool:
    """Of a model that tells nothing of its body, as CLIP's classifier of images."""
    return told and model.base_model is model and name.partition(".")[0] in ("classifier", "score")


def _role_of(name: str, place: str | None, *, told: bool) -> str:
    """Published names go first in transformers' models, which say themselves what their heads are; in any
    other module names are a last resort."""
    by_name = _role(name)
    if told:
        return by_name if by_name != "other" or place in (None, "head") else place
    return place or by_name


class _Shape(NamedTuple):
    """What a module's matrix is like; see :class:`ModuleProfile`."""

    kind: str
    in_features: int
    out_features: int
    taps: int = 1
    groups: int = 1


def _shape_of(module: Any) -> _Shape | None:
    """Of a module that is a matrix, or several of one shape; None of any other."""
    match module:
        case nn.Linear():
            return _Shape("linear", module.in_features, module.out_features)
        case Conv1D():
            return _Shape("conv1d", module.nx, module.nf)
        case nn.Embedding():
            return _Shape("embedding", module.num_embeddings, module.embedding_dim)
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            taps = math.prod(module.kernel_size)
            return _Shape("convolution", module.in_channels, module.out_channels, taps, module.groups)
        case nn.MultiheadAttention():
            return _Shape("attention", module.embed_dim, 3 * module.embed_dim)
    return None


def _block_of(name: str, layers: Mapping[str, int]) -> int | None:
    """The number of the outermost stacked block around a module."""
    parts = name.split(".")
    blocks = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((layers[block] for block in blocks if block in layers), None)


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
