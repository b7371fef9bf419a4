"""A LoRA as people write it: the blocks ``lora`` and ``quantization`` of a study file, or a mapping.

Takes the names that PEFT and the usual configuration files have for the same thing. Knows nothing of files,
and of whether a model has such modules.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import InputError
from ..optimizer.domain import OwnLora, Quantization

DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}
HIGHEST_RANK = 65_536
LONGEST_PATTERN = 200
MOST_REPEATS = 3
QUANTIZED = tuple(kind for kind in Quantization if kind is not Quantization.NONE)

Path = tuple[str, ...]
"""Keys from the outermost inwards: ``("lora", "r")``."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    path: Path
    error: InputError


def read_own_lora(lora: Any, quantization: Any = None) -> tuple[OwnLora | None, tuple[Problem, ...]]:
    """The LoRA that the two blocks describe, or everything that is wrong with them.

    A block that is not enabled is as good as absent.
    """
    problems: list[Problem] = []
    own = _read_block("lora", lora, _LORA, problems)
    quantized = _read_block("quantization", quantization, _QUANTIZATION, problems)
    is_wanted = own.pop("enabled", True) and lora is not None
    is_quantized = quantized.pop("enabled", True) and quantization is not None
    if is_quantized and not is_wanted and not problems:
        problems.append(
            Problem(
                ("quantization",),
                InputError(
                    "the block quantization belongs to a block lora, and there is none",
                    next_step="add one, or restrict the search with quantizations: [nf4]",
                ),
            )
        )
    if problems or not is_wanted:
        return None, tuple(problems)
    if is_quantized:
        own |= {"quantization": Quantization.NF4, **quantized}
        if own.get("double_quantization") and not own["quantization"].is_4bit:
            error = InputError(
                "only the scales of 4-bit blocks can be quantized too", next_step="leave it out"
            )
            return None, (Problem(("quantization", "double_quant"), error),)
    return OwnLora(**own), ()


def nearest_key(key: str, known: Collection[str]) -> str:
    """What may have been meant by a key that is unknown, as the next step of an error."""
    near = difflib.get_close_matches(str(key), known, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def _read_block(
    name: str, block: Any, readers: Mapping[str, tuple[str, Callable[[Any], Any]]], problems: list[Problem]
) -> dict[str, Any]:
    """Field → value, of the keys that can be read."""
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        error = InputError(f"{name} is no block of keys", next_step=f"write its keys below it, as {_EXAMPLE}")
        problems.append(Problem((name,), error))
        return {}
    found: dict[str, Any] = {}
    for key, value in block.items():
        if key not in readers:
            error = InputError(f"key {key!r} of {name} is unknown", next_step=nearest_key(key, readers))
            problems.append(Problem((name, str(key)), error))
            continue
        field, read = readers[key]
        if field in found:
            error = InputError(f"{name} has {key!r} under two names", next_step="keep one of them")
            problems.append(Problem((name, key), error))
            continue
        try:
            found[field] = read(value)
        except InputError as error:
            message = f"{name}.{key}: {error.message}"
            problems.append(Problem((name, key), InputError(message, next_step=error.next_step)))
    return {field: value for field, value in found.items() if field not in _ONLY_CHECKED}


def _whole(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= HIGHEST_RANK:
        raise InputError(f"{value!r} is no rank", next_step="use a whole number from 1 on, such as 8")
    return value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{value!r} is not a number above 0", next_step="take twice the rank")
    return float(value)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{value!r} is no share", next_step="use a number from 0 to below 1, such as 0.05")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{value!r} is neither true nor false", next_step="use true or false")
    return value


def _names(value: Any) -> tuple[str, ...]:
    """A list, or one text with commas; a regular expression is one name."""
    if isinstance(value, str):
        parts = [simple_expression(value)] if value.startswith("re:") else value.split(",")
    else:
        parts = value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"{value!r} is no list of names", next_step="write it like [q_proj, v_proj]")
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names:
        raise InputError("no module is named", next_step="write it like [q_proj, v_proj]")
    return names


def _skipped(value: Any) -> tuple[str, ...]:
    return () if value in ([], ()) else _names(value)


def _pattern(read: Callable[[Any], Any], value: Any) -> tuple[tuple[str, Any], ...]:
    """Pairs of a regular expression and what it stands for, in the order of writing."""
    if not isinstance(value, Mapping):
        raise InputError(f"{value!r} is no block of keys", next_step="write it like {q_proj: 16}")
    pairs = []
    for key, number in value.items():
        pairs.append((simple_expression(str(key)), read(number)))
    return tuple(pairs)


def simple_expression(text: str) -> str:
    """A regular expression that takes no time worth mentioning, whatever name it is held against."""
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:
        cause = f"is no regular expression: {error}"
    else:
        repeats = len(re.findall(r"(?<!\\)[*+{]", text))
        if len(text) <= LONGEST_PATTERN and repeats <= MOST_REPEATS and not re.search(r"\)[*+?{]", text):
            return text
        cause = f"is long, repeats more than {MOST_REPEATS} times or repeats a group"
    raise InputError(f"{text!r:.80} {cause}", next_step=r"write it like 'layers\.1\..*'")


def _one_of(words: Mapping[str, Any], value: Any) -> Any:
    word = str(value).lower()
    if word not in words:
        raise InputError(f"{value!r} is unknown", next_step=f"use one of {', '.join(words)}")
    return words[word]


def _no_bias(value: Any) -> str:
    if value != "none":
        raise InputError(
            f"biases {value!r} are not trained beside LoRA", next_step="use none, or --method bitfit"
        )
    return "none"


def _mode(value: Any) -> str:
    """Either is taken, and what suits the model is done: transformers quantizes its own models as it loads
    them, and of a module of one's own linear layers are replaced."""
    mode: str = _one_of({"hf": "hf", "manual": "manual"}, value)
    return mode


def _named(*groups: tuple[str, Callable[[Any], Any], str]) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Key → (field, how it is read); each group lists the names of one field."""
    return {key: (field, read) for field, read, keys in groups for key in keys.split()}


_LORA = _named(
    ("enabled", _flag, "enabled"),
    ("rank", _whole, "r rank lora_r"),
    ("alpha", _positive, "alpha lora_alpha"),
    ("dropout", _share, "dropout lora_dropout"),
    ("targets", _names, "target_modules targets"),
    ("bias", _no_bias, "bias"),
    ("use_rslora", _flag, "rslora use_rslora"),
    ("use_dora", _flag, "dora use_dora"),
    ("first_rank", _whole, "r_first_layers"),
    ("last_rank", _whole, "r_last_layers"),
    ("rank_pattern", partial(_pattern, _whole), "rank_pattern"),
    ("alpha_pattern", partial(_pattern, _positive), "alpha_pattern"),
)
_QUANTIZATION = _named(
    ("enabled", _flag, "enabled"),
    ("quantization", partial(_one_of, {kind.value: kind for kind in QUANTIZED}), "type quant_type"),
    ("compute_dtype", partial(_one_of, DTYPES), "compute_dtype"),
    ("double_quantization", _flag, "double_quant"),
    ("skip_modules", _skipped, "skip_modules"),
    ("mode", _mode, "mode"),
)
_ONLY_CHECKED = ("bias", "mode")
"""Fields that have one value only."""

_EXAMPLE = "r: 8"


def problems_of(lora: OwnLora) -> Iterator[InputError]:
    """What is wrong with a LoRA whose fields were given one by one, whatever the model is."""
    _, problems = read_own_lora(*own_lora_blocks(lora))
    yield from (problem.error for problem in problems)


def own_lora_blocks(lora: OwnLora) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The two blocks that describe it."""
    block = {
        "r": lora.rank,
        "dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "rslora": lora.use_rslora,
        "dora": lora.use_dora,
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern),
        **{
            key: value
            for key, value in (
                ("alpha", lora.alpha),
                ("r_first_layers", lora.first_rank),
                ("r_last_layers", lora.last_rank),
            )
            if value is not None
        },
    }
    if lora.quantization is Quantization.NONE:
        return block, None
    return block, {
        "type": lora.quantization.value,
        "double_quant": lora.double_quantization,
        "skip_modules": list(lora.skip_modules),
        **({} if lora.compute_dtype is None else {"compute_dtype": lora.compute_dtype}),
    }
