"""What part a module plays, told from how a model is put together and run, not from what it is called.

Looks at parents, shapes and classes and, where a run was watched, at which modules read the same tensor.
Takes any ``nn.Module``; imports torch, so it runs in a child of the warm server. Knows nothing of
adapters.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_ATTENTION = re.compile(r"att(en)?(tio)?n|\bmh?s?a\d*\b|multi_?head", re.IGNORECASE)
"""In the class or name of a block that lets places of a sequence look at each other: a hint only."""

_OUTPUT = re.compile(r"(.*_)?(o|out|output|proj|fc_o|wo)(_?proj|_?lin(ear)?)?\d*", re.IGNORECASE)

_QKV = tuple(
    (
        role,
        re.compile(
            rf"(?P<before>.*?)(?<![a-z])({letter}|{word}|{word}s|{word[:3]}|w{letter})(?![a-z])(?P<after>.*)",
            re.IGNORECASE,
        ),
    )
    for role, letter, word in (("query", "q", "query"), ("key", "k", "key"), ("value", "v", "value"))
)
"""How names tell the three apart, as ``fc_q``, ``to_k``, ``values`` and ``Wv`` do."""


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class Call:
    """A module's turn in a watched run."""

    name: str
    reads: int
    """Which tensor it was given first; equal numbers are the same tensor."""


def watched(model: nn.Module, run: Callable[[], Any]) -> tuple[Call, ...]:
    """The modules that own parameters, in the order in which a run calls them."""
    calls: list[Call] = []
    seen: list[Any] = []  # kept, so that no number is given twice

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> None:
            first = next(
                (each for each in (*inputs, *named.values()) if isinstance(each, torch.Tensor)), None
            )
            seen.append(first)
            calls.append(Call(name, id(first)))

        return hook

    hooks = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) or isinstance(module, nn.MultiheadAttention)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(calls)


def structural_roles(model: nn.Module, calls: Sequence[Call] = ()) -> dict[str, str]:
    """Module name → role, of those matrices whose place tells it."""
    roles: dict[str, str] = {}
    reads = {call.name: call.reads for call in reversed(calls)}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            roles[name] = "qkv"
            roles[f"{name}.out_proj"] = "attention_output"
            continue
        linears = dict(_own_matrices(module))
        if not linears:
            continue
        found = _attention_roles(name, module, linears, reads) or _perceptron_roles(linears)
        roles |= {f"{name}.{own}".lstrip("."): role for own, role in found.items()}
    for name in _heads(modules, calls):
        if name not in roles or (roles[name] == "mlp_out" and "." not in name):
            roles[name] = "head"
    return roles


def matrix_of(module: nn.Module) -> tuple[int, int] | None:
    """Input and output features of a module that is one matrix; None of any other."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def block_numbers(model: nn.Module) -> dict[str, int]:
    """Name → number, of the blocks that are stacked: members of a list that are of one class.

    Their own modules count to the outermost one; lists of plain layers are no stacks.
    """
    numbers: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        blocks = [
            (own, child) for own, child in module.named_children() if any(True for _ in child.children())
        ]
        classes = Counter(type(child) for _, child in blocks)
        if len(blocks) > 1 and len(classes) == 1:
            numbers |= {f"{name}.{own}".lstrip("."): int(own) for own, _ in blocks if own.isdigit()}
    return numbers


def _own_matrices(block: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name → features of a block's matrices, and of those that stand in a sequence with nothing but
    activations and dropout."""
    for own, child in block.named_children():
        if sizes := matrix_of(child):
            yield own, sizes
        elif isinstance(child, nn.Sequential):
            inside = [
                (number, sizes) for number, layer in child.named_children() if (sizes := matrix_of(layer))
            ]
            if len(inside) == 1 and len(list(child.parameters())) <= 2:
                yield f"{own}.{inside[0][0]}", inside[0][1]


def _attention_roles(
    name: str, block: nn.Module, linears: Mapping[str, tuple[int, int]], reads: Mapping[str, int]
) -> dict[str, str]:
    """Of the matrices of one block, if they are those of an attention; else nothing."""
    own_name = name.rpartition(".")[2]
    is_attention = bool(_ATTENTION.search(own_name) or _ATTENTION.search(_words(type(block).__name__)))
    triple = _named_triple(linears) or (is_attention and _read_together(name, linears, reads)) or {}
    if not triple and is_attention:
        fused = [
            own for own, (width, out) in linears.items() if out > width and out % 3 == 0 and out == 3 * width
        ]
        triple = {fused[0]: "qkv"} if len(fused) == 1 else {}
    if not triple:
        return {}
    rest = [own for own in linears if own not in triple]
    outputs = [own for own in rest if _OUTPUT.fullmatch(own.partition(".")[0])]
    outputs = outputs or (rest if len(rest) == 1 else [])
    return triple | ({outputs[0]: "attention_output"} if len(outputs) == 1 else {})


def _named_triple(linears: Mapping[str, Any]) -> dict[str, str]:
    """Three matrices whose names differ in the letter for query, key or value only."""
    forms: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for own in linears:
        for role, pattern in _QKV:
            if match := pattern.fullmatch(own):
                forms[match["before"], match["after"]][role] = own
    whole = [form for form in forms.values() if len(form) == len(_QKV)]
    return {own: role for role, own in whole[0].items()} if len(whole) == 1 else {}


def _read_together(
    name: str, linears: Mapping[str, tuple[int, int]], reads: Mapping[str, int]
) -> dict[str, str]:
    """Three matrices of an attention that read the same tensor: query, key and value, in their order."""
    readers: defaultdict[int, list[str]] = defaultdict(list)
    for own in linears:
        if (tensor := reads.get(f"{name}.{own}".lstrip("."))) is not None:
            readers[tensor].append(own)
    threes = [own for own in readers.values() if len(own) == len(_QKV)]
    return dict(zip(threes[0], ("query", "key", "value"), strict=True)) if len(threes) == 1 else {}


def _perceptron_roles(linears: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Of a block of two matrices, in and out again, or three, of which one is a gate."""
    match list(linears.items()):
        case [(first, (width, inner)), (second, (inner_again, out))] if inner == inner_again and width == out:
            return {first: "mlp_in", second: "mlp_out"}
        case [(first, one), (second, two), (third, (inner, out))] if one == two == (out, inner) and (
            inner != out or "gate" in f"{first} {second}"
        ):
            gate, up = (second, first) if "gate" in second else (first, second)
            return {gate: "mlp_gate", up: "mlp_in", third: "mlp_out"}
    return {}


def _heads(modules: Mapping[str, nn.Module], calls: Sequence[Call]) -> Iterator[str]:
    """What comes after the body.

    Where blocks are stacked and a run was watched: what is called after the last of them and is no part of
    what holds them. Else the layer that comes last, if it is in no such block, with others of its shape and
    name but for a number. A network of one layer is no head on anything.
    """
    stacked = block_numbers(modules[""])
    layers = [
        name for name, module in modules.items() if matrix_of(module) or isinstance(module, _CONVOLUTIONS)
    ]
    called = [call.name for call in calls if call.name in set(layers)]
    inside = [at for at, name in enumerate(called) if _is_inside(name, stacked)]
    if inside:
        body = called[inside[-1]].partition(".")[0]
        after = [name for name in called[inside[-1] + 1 :] if name.partition(".")[0] != body]
        yield from dict.fromkeys(after)
        return
    for name in (called or layers)[-1:] if len(layers) > 1 else ():
        if _is_inside(name, stacked):
            return
        stem, shape = name.rstrip("0123456789"), _shape_of(modules[name])
        # Layers that can stand one behind the other are no heads side by side.
        has_number = stem != name and shape is not None and shape[1] != shape[2]
        yield from (
            each
            for each in layers
            if each == name
            or (has_number and each.rstrip("0123456789") == stem and _shape_of(modules[each]) == shape)
        )


def _shape_of(module: nn.Module) -> tuple[type, int, int] | None:
    """Class, input and output width of a layer."""
    if isinstance(module, _CONVOLUTIONS):
        return type(module), module.in_channels, module.out_channels
    sizes = matrix_of(module)
    return None if sizes is None else (type(module), *sizes)


def _is_inside(name: str, blocks: Iterable[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _words(class_name: str) -> str:
    """``MultiHeadSelfAttention`` as words, so that a hint in the midst of one does not count."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", class_name)
