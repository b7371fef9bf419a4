"""Target modules as people write them: names, ends, parts of names, patterns, roles, ranges of layers.

    query,value             names or ends of names, as PEFT takes them; else parts of names
    ['dense', 'msa']        parts of names, as a list
    re:.*(query|value)      a regular expression for the whole name, as PEFT takes a single text
    all-linear              every linear layer of the body, as PEFT has it
    attention  mlp  head …  roles, found by structure (:data:`ROLE_WORDS`)
    attention@8-11          of these, only layers 8 to 11; ``@-4`` the last four, ``@8-`` from the eighth on

Knows nothing of ranks and methods.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..probes.profiles import ModelProfile, ModuleProfile
from .targets import suffixes_for, target_pattern
from .verdicts import Where, listed

ADAPTABLE = ("linear", "conv1d", "convolution", "embedding", "attention", "attention-part", "experts")
"""Kinds of modules that some method takes."""

QKV = frozenset({"query", "key", "value", "qkv"})

ROLE_WORDS: Mapping[str, frozenset[str]] = {
    "attention": QKV | {"attention_output"},
    "attention-output": frozenset({"attention_output"}),
    "mlp": frozenset({"mlp_in", "mlp_gate", "mlp_out"}),
    "head": frozenset({"head"}),
    **{role: frozenset({role}) for role in ("query", "key", "value", "qkv")},
}
KIND_WORDS: Mapping[str, frozenset[str]] = {
    "convolution": frozenset({"convolution"}),
    "embedding": frozenset({"embedding"}),
}
ALL_LINEAR = "all-linear"

_RANGE = re.compile(r"(?P<what>.*)@(?P<first>-?\d+)?(?P<to>-)?(?P<last>\d+)?")
_PATTERN = re.compile(r"[*+?\\^$|(){}]")
"""What tells a regular expression from a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Modules that somebody chose, in the model's order."""

    written: str
    modules: tuple[ModuleProfile, ...]
    where: Where
    """The same for PEFT."""
    warnings: tuple[str, ...] = ()


def select(written: str, model: ModelProfile) -> Selection:
    """Find what a choice of targets matches.

    Raises:
        InputError: nothing matches, or it cannot be read; with the nearest names.
    """
    text = written.strip()
    layers: Callable[[ModuleProfile], bool] | None = None
    if "@" in text and not text.startswith("re:"):
        text, layers = _layers(text, model)
    found, warnings = _found(text, model)
    if layers is not None:
        found = [module for module in found if layers(module)]
    if not found:
        raise _no_match(written, model)
    found = _with_whole_attention(found, model, warnings)
    return Selection(
        written=written,
        modules=tuple(found),
        where=where_of(found, model),
        warnings=tuple(warnings),
    )


def _with_whole_attention(
    found: Sequence[ModuleProfile], model: ModelProfile, warnings: list[str]
) -> list[ModuleProfile]:
    """nn.MultiheadAttention in place of its output projection, whose weight it reads without calling it."""
    inner = [module.name for module in found if module.kind == "attention-part"]
    owners = {name.rpartition(".")[0] for name in inner}
    if missing := owners - {module.name for module in found}:
        warnings.append(
            f"{listed(inner)}: an adapter there would get no gradient, since nn.MultiheadAttention reads the "
            f"weight itself; all of the attention is taken instead ({listed(sorted(missing))})."
        )
    wanted = ({module.name for module in found} | owners) - set(inner)
    return [module for module in model.modules if module.name in wanted]


def pattern_in(text: str) -> str | None:
    """The regular expression, if that is what somebody wrote."""
    text = text.strip()
    if text.startswith("re:") or (_PATTERN.search(text) and not text.startswith("[")):
        return text.removeprefix("re:")
    return None


def where_of(chosen: Sequence[ModuleProfile], model: ModelProfile) -> Where:
    """These modules as PEFT takes them: a list where one tells them from all others, else a pattern."""
    names = [module.name for module in chosen if module.kind != "experts"]
    blocks = {
        ".".join(parts[:end])
        for module in model.modules
        for parts in [module.name.split(".")]
        for end in range(1, len(parts) + 1)
    }
    experts = [module.name for module in chosen if module.kind == "experts"]
    parameters = {f"{module.name}.weight" for module in model.modules if module.kind != "experts"}
    ends = suffixes_for(experts, parameters | {m.name for m in model.modules if m.kind == "experts"})
    suffixes = suffixes_for(names, blocks)
    if suffixes is None:
        return Where(pattern=target_pattern(names), parameters=ends or ())
    return Where(modules=suffixes, parameters=ends or ())


def _found(text: str, model: ModelProfile) -> tuple[list[ModuleProfile], list[str]]:
    adaptable = [module for module in model.modules if module.kind in ADAPTABLE]
    if text == ALL_LINEAR:
        return [m for m in adaptable if m.kind in ("linear", "conv1d") and m.role != "head"], []
    if (pattern := pattern_in(text)) is not None:
        return _matching(pattern, adaptable), []
    if text.startswith("["):
        return _containing(_parts(text), adaptable)
    chosen: dict[str, ModuleProfile] = {}
    warnings: list[str] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        more = _of_word(word, adaptable)
        if not more:
            more = [module for module in adaptable if word in module.name]
            if more:
                warnings.append(f"No module is called {word!r}; {len(more)} have it in their names.")
        if not more:
            raise _no_match(word, model)
        chosen |= {module.name: module for module in more}
    return [module for module in adaptable if module.name in chosen], warnings


def _of_word(word: str, modules: Sequence[ModuleProfile]) -> list[ModuleProfile]:
    """Of a role, else by name or end of it."""
    if word == ALL_LINEAR:
        return [m for m in modules if m.kind in ("linear", "conv1d") and m.role != "head"]
    named = [module for module in modules if f".{module.name}".endswith(f".{word}")]
    if word in ROLE_WORDS:
        return [module for module in modules if module.role in ROLE_WORDS[word]] or named
    if word in KIND_WORDS:
        return [module for module in modules if module.kind in KIND_WORDS[word]] or named
    return named


def _matching(pattern: str, modules: Sequence[ModuleProfile]) -> list[ModuleProfile]:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise InputError(
            f"the pattern {pattern!r} is no regular expression: {error}",
            next_step="correct it, or write names separated by commas",
        ) from error
    return [module for module in modules if compiled.fullmatch(module.name)]


def _parts(text: str) -> list[str]:
    """A list as in Python or JSON."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise InputError(
            f"{text} is no list of texts", next_step="write it like ['dense', 'msa'], or names with commas"
        )
    return value


def _containing(
    parts: Sequence[str], modules: Sequence[ModuleProfile]
) -> tuple[list[ModuleProfile], list[str]]:
    warnings = []
    if "" in parts:
        warnings.append("'' is a part of every name: it matches everything, which is not recommended.")
    return [module for module in modules if any(part in module.name for part in parts)], warnings


def _layers(text: str, model: ModelProfile) -> tuple[str, Callable[[ModuleProfile], bool]]:
    """What stands before the range, and whether a module lies in it."""
    if text.count("@") > 1:
        raise InputError(
            f"{text!r} names several ranges of layers, and one holds for the whole choice",
            next_step="write each as a choice of its own",
        )
    match = _RANGE.fullmatch(text)
    depth = 1 + max((module.layer for module in model.modules if module.layer is not None), default=-1)
    if match is None or (match["first"] is None and match["last"] is None):
        raise InputError(
            f"{text!r} names no range of layers",
            next_step="write it like attention@8-11, mlp@6-, query@-4 (the last four) or mlp@0",
        )
    first, last = match["first"], match["last"]
    if first is not None and first.startswith("-"):
        low, high = depth + int(first), depth - 1
    else:
        low = int(first or 0)
        high = int(last) if last is not None else depth - 1 if match["to"] else low
    if not 0 <= low <= high < depth:
        raise InputError(
            f"the layers {low} to {high} of {text!r} are not all there: {model.source} has "
            + (f"layers 0 to {depth - 1}" if depth else "no stacked layers"),
            next_step="name a range within these" if depth else "leave the range out",
        )
    return match["what"] or ALL_LINEAR, lambda m: m.layer is not None and low <= m.layer <= high


def _no_match(text: str, model: ModelProfile) -> InputError:
    if text in ROLE_WORDS or text in KIND_WORDS:
        roles = sorted({module.role for module in model.modules} - {"other"})
        return InputError(
            f"no module of {model.source} plays the part {text!r}",
            next_step=f"those that are played: {', '.join(roles) or 'none'}; or name modules",
        )
    names = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", m.name) for m in model.modules))
    ends = sorted({name.rpartition(".")[2] for name in names} | set(ROLE_WORDS) | set(KIND_WORDS))
    near = difflib.get_close_matches(text.rpartition(".")[2], ends, n=3, cutoff=0.5)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(
        f"no module of {model.source} matches {text!r}; it has {listed(names, shown=24)}",
        next_step=f"{suggestion}name modules, ends of their names, or roles: {', '.join(ROLE_WORDS)}",
    )
