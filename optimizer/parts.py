"""Which of a model's own weights are trained where there is no adapter: head, last blocks, biases, norms.

A *part* names a module or a parameter by its full name, or by what stands within it between dots. Knows
nothing of PEFT's methods, levels or trials.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ..probes.profiles import ModelProfile, TensorProfile

LEAST_STACK_SHARE = 0.1
"""A stack of blocks with a smaller share of the largest one's parameters is no body, but a small head."""

_BIAS = re.compile(r"(.*_)?bias(_.*)?")


def is_part(name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of the parts."""
    return any(f".{part}." in f".{name}." for part in parts)


def parameters_of(parts: Collection[str], model: ModelProfile) -> int:
    """How many parameters the parts have together, each counted once."""
    return sum(tensor.parameters for tensor in model.tensors if is_part(tensor.name, parts))


def head_parts(model: ModelProfile) -> tuple[str, ...]:
    """The heads that came with the model. One whose weight is the embeddings' has none of its own."""
    return tuple(module.name for module in model.modules if module.role == "head" and module.parameters)


def bias_parts(model: ModelProfile) -> tuple[str, ...]:
    """All biases, those of norms included; empty where the model has none."""
    wanted = {tensor.name for tensor in model.tensors if _is_bias(tensor)}
    return parts_for(wanted, wanted, model)


def norm_parts(model: ModelProfile) -> tuple[str, ...]:
    """All norms, weights and biases."""
    wanted = {tensor.name for tensor in model.tensors if tensor.kind == "norm"}
    return parts_for({name.rpartition(".")[0] for name in wanted}, wanted, model)


def blocks_of(model: ModelProfile) -> tuple[str, ...]:
    """The blocks of the body's last stack, first to last: an encoder's, or the decoder's that follows it."""
    stacks: dict[str, dict[int, int]] = {}
    for tensor in model.tensors:
        if tensor.block is not None:
            stack, _, number = tensor.block.rpartition(".")
            blocks = stacks.setdefault(stack, {})
            blocks[int(number)] = blocks.get(int(number), 0) + tensor.parameters
    sizes = {stack: sum(blocks.values()) for stack, blocks in stacks.items() if len(blocks) > 1}
    deep = [stack for stack, size in sizes.items() if size >= LEAST_STACK_SHARE * max(sizes.values())]
    return tuple(f"{deep[-1]}.{number}".lstrip(".") for number in sorted(stacks[deep[-1]])) if deep else ()


def parts_for(wanted: Collection[str], covered: Collection[str], model: ModelProfile) -> tuple[str, ...]:
    """The shortest ends of the wanted names that no parameter has which is not to be covered, sorted.

    Args:
        wanted: names of modules or parameters.
        covered: names of the parameters that these are, or hold.
    """
    others = [f".{tensor.name}." for tensor in model.tensors if tensor.name not in covered]
    is_free: dict[str, bool] = {}

    def free(end: str) -> bool:
        if end not in is_free:
            is_free[end] = not any(f".{end}." in other for other in others)
        return is_free[end]

    parts = set()
    for name in wanted:
        pieces = name.split(".")
        ends = (".".join(pieces[start:]) for start in range(len(pieces) - 1, -1, -1))
        parts.add(next((end for end in ends if free(end)), name))
    return tuple(sorted(parts))


def _is_bias(tensor: TensorProfile) -> bool:
    own = tensor.name.rpartition(".")[2]
    return tensor.kind == "bias" or (tensor.kind == "norm" and _BIAS.fullmatch(own) is not None)
