"""A trainer's keys as settings: whose keys they are, what they say, and what they leave to the trainer.

The other direction of :mod:`.writing`. Files are read elsewhere; nothing here is executed or looked up.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ...errors import InputError
from ..domain import Method, Quantization
from .cells import Cell, Keys, Unsaid
from .known_keys import KNOWN_KEYS, PEFT
from .table import TABLE, Trainer

FORMATS = (*(trainer.value for trainer in Trainer), PEFT)
"""Whose files can be read: the trainers', and PEFT's adapter configuration."""

TRAINING_FORMATS = ("transformers", "trl", "axolotl", "llamafactory")
"""Those that say what is trained; the others say how it is launched, or which adapter there is."""

LEAST_SHARE = 0.5
"""Of a file's keys, that its trainer has to know."""

REFUSES_UNKNOWN = frozenset({"transformers", "trl", "llamafactory", "accelerate", PEFT})
"""Who ends with an error at a key that it does not know. Axolotl and DeepSpeed pass over it."""

OPTIMIZERS: Mapping[str, str] = {
    "adamw_torch": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_torch_fused": "adamw_torch_fused",
    "adamw_apex_fused": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""Trainers' names of the optimizers that rankwise runs → its own."""

PEFT_METHODS: Mapping[str, Method] = {
    "LORA": Method.LORA,
    "ADALORA": Method.ADALORA,
    "IA3": Method.IA3,
    "OFT": Method.OFT,
    "MISS": Method.MISS,
}


class Unclear(InputError):
    """It cannot be told whose file it is."""


class Wanted(StrEnum):
    """What a setting's value has to be."""

    WHOLE = "a whole number"
    NUMBER = "a number"
    FLAG = "true or false"
    WORD = "a word"
    NAMES = "a list of names, or one name"


KINDS: Mapping[str, Wanted] = {
    **dict.fromkeys(
        ("rank", "last_blocks", "zero_stage", "micro_batch", "accumulation", "max_length", "seed"),
        Wanted.WHOLE,
    ),
    **dict.fromkeys(
        ("alpha", "dropout", "epochs", "learning_rate", "warmup_share", "weight_decay", "max_grad_norm"),
        Wanted.NUMBER,
    ),
    **dict.fromkeys(
        (
            *("model_code", "rslora", "dora", "double_quantization", "gradient_checkpointing", "compile"),
            *("packing", "cpu"),
        ),
        Wanted.FLAG,
    ),
    **dict.fromkeys(
        (
            *("model", "method", "weight_dtype", "autocast", "adapter_dtype", "quantization", "attention"),
            *("model_revision", "loss", "optimizer", "schedule", "offload"),
        ),
        Wanted.WORD,
    ),
    **dict.fromkeys(("targets", "target_parameters", "trained_modules"), Wanted.NAMES),
}
"""Of the settings whose values are checked."""

MODEL = ("model", "model_revision")
"""The settings that say which model it is."""
WHOLE_FROM_1 = ("rank", "micro_batch", "accumulation", "max_length", "last_blocks")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A key that the trainer does not have."""

    key: str
    nearest: str | None
    """That may have been meant."""


@dataclass(frozen=True, slots=True)
class BadValue:
    """A key whose value cannot be understood."""

    setting: str
    key: str
    value: Any
    wanted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a file says of a training."""

    trainer: str
    """One of :data:`FORMATS`."""
    keys: Keys
    settings: Mapping[str, Any]
    """What is said, and what the trainer does where nothing is said, as far as that is known."""
    said: frozenset[str]
    """The settings that the file itself names."""
    unknown: tuple[Unknown, ...] = ()
    ignored: tuple[str, ...] = ()
    """Keys that the trainer knows and no setting tells of: they are left as they are."""
    bad: tuple[BadValue, ...] = ()
    key_of: Mapping[str, str] = field(default_factory=dict)
    """Setting → the key that says it, of those that are said."""

    def get(self, setting: str, default: Any = None) -> Any:
        """The setting's value; the default where it is not known."""
        value = self.settings.get(setting)
        return default if value is None else value

    @property
    def method(self) -> Method | None:
        """None where it is not known, or rankwise has none of that name."""
        return next((method for method in Method if method == self.get("method")), None)

    @property
    def quantization(self) -> Quantization:
        """NONE too where nothing is known of it."""
        told = self.get("quantization", Quantization.NONE)
        return next((kind for kind in Quantization if kind == told), Quantization.NONE)


def whose(keys: Keys) -> str:
    """The format that these keys belong to, told by their names.

    Raises:
        Unclear: they belong to none, or to several alike.
    """
    if "peft_type" in keys:
        return PEFT
    names = {str(name) for name in keys}
    hits = {trainer: len(names & KNOWN_KEYS[trainer]) for trainer in FORMATS if trainer != PEFT}
    most = max(hits.values())
    best = [trainer for trainer, count in hits.items() if count == most]
    if most < max(1.0, LEAST_SHARE * len(names)):
        raise Unclear(
            f"the keys ({', '.join(sorted(names)[:5])}{', …' if len(names) > 5 else ''}) are those of no "
            "trainer that is known",
            next_step=f"name the format: {', '.join(FORMATS)}",
        )
    # Whoever extends the Trainer's arguments knows them too: they alone are the Trainer's.
    if "transformers" in best:
        return "transformers"
    if len(best) > 1:
        raise Unclear(
            f"the keys may be those of {' or '.join(best)}",
            next_step=f"name the format: {', '.join(best)}",
        )
    return best[0]


def read(keys: Keys, trainer: str) -> Reading:
    """Every setting that the keys tell of, in neutral words.

    Args:
        keys: of a file.
        trainer: one of :data:`FORMATS`.
    """
    if trainer == PEFT:
        return _read_adapter(keys)
    # What DeepSpeed's file calls auto, the training decides.
    told = {name: value for name, value in keys.items() if trainer != "deepspeed" or value != "auto"}
    settings: dict[str, Any] = {}
    said: set[str] = set()
    key_of: dict[str, str] = {}
    bad: list[BadValue] = []
    for setting, row in TABLE.items():
        cell = row.cell(Trainer(trainer))
        named = [name for name in cell.keys if told.get(name) is not None]
        try:
            value = _checked(setting, cell.read(told))
        except Unsaid:
            continue
        except (TypeError, ValueError, AttributeError):
            # Whatever a cell stumbles over, it is the value of its key.
            bad += _bad_value(setting, cell, told)
            continue
        settings[setting] = value
        if named:
            said.add(setting)
            key_of[setting] = named[0]
    return Reading(
        trainer=trainer,
        keys=keys,
        settings=settings,
        said=frozenset(said),
        key_of=key_of,
        unknown=_unknown(keys, trainer),
        ignored=_ignored(keys, trainer, _read_keys(trainer)),
        bad=tuple(bad),
    )


def _unknown(keys: Keys, trainer: str) -> tuple[Unknown, ...]:
    known = KNOWN_KEYS[trainer]
    return tuple(Unknown(str(name), nearest(str(name), known)) for name in keys if str(name) not in known)


def _ignored(keys: Keys, trainer: str, are_read: Collection[str]) -> tuple[str, ...]:
    """Keys that the trainer knows and no setting is read from."""
    return tuple(sorted({str(name) for name in keys if name in KNOWN_KEYS[trainer]}.difference(are_read)))


def nearest(name: str, known: frozenset[str]) -> str | None:
    """The known name that may have been meant."""
    folded = {each.replace("_", "").lower(): each for each in known}
    same = folded.get(name.replace("-", "").replace("_", "").lower())
    close = difflib.get_close_matches(name, sorted(known), 1)
    return same or (close[0] if close else None)


def with_adapter(reading: Reading, adapter: Reading) -> Reading:
    """A training whose adapter has a file of its own, as the Trainer's has."""
    own = {name: value for name, value in adapter.settings.items() if name not in MODEL}
    model = {} if reading.get("model") else {name: adapter.settings.get(name) for name in MODEL}
    return replace(
        reading,
        settings={**reading.settings, **own, **{name: value for name, value in model.items() if value}},
        said=reading.said | adapter.said.difference(MODEL),
    )


def with_deepspeed(reading: Reading, deepspeed: Reading) -> Reading:
    """A training that DeepSpeed divides; what its file leaves to the training (``auto``) stays."""
    taken: dict[str, Any] = {
        name: deepspeed.settings[name] for name in ("zero_stage", "offload") if name in deepspeed.said
    }
    if "zero_stage" in taken:
        taken["offload"] = deepspeed.settings.get("offload", "none")
    return replace(reading, settings={**reading.settings, **taken}, said=reading.said | set(taken))


def _read_keys(trainer: str) -> set[str]:
    """All keys that some setting reads."""
    cells = (row.cell(Trainer(trainer)) for row in TABLE.values())
    return {name for cell in cells for name in cell.keys}


def _bad_value(setting: str, cell: Cell, keys: Keys) -> list[BadValue]:
    named = [name for name in cell.keys if keys.get(name) is not None]
    wanted = KINDS.get(setting, Wanted.WORD)
    return [BadValue(setting, name, keys[name], wanted) for name in named[:1]]


def _checked(setting: str, value: Any) -> Any:
    """The value in the type that the setting has; numbers may be written as texts, as YAML reads ``1e-4``.

    Raises:
        ValueError: it is something else.
    """
    if value is None or setting not in KINDS:
        return value
    return _CHECKS[KINDS[setting]](setting, value)


def _whole(setting: str, value: Any) -> int:
    number = _number(setting, value)
    if number != int(number) or (number < 1 and setting in WHOLE_FROM_1):
        raise ValueError(value)
    return int(number)


def _number(_: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    number = float(value)
    if not math.isfinite(number) or abs(number) > 1e15:
        raise ValueError(value)
    return number


def _flag(_: str, value: Any) -> bool:
    if isinstance(value, str):
        words = {"true": True, "false": False, "offload": True, "offload_disk": True, "unsloth": True}
        if value.lower() not in words:
            raise ValueError(value)
        return words[value.lower()]
    if not isinstance(value, bool | int):
        raise ValueError(value)
    return bool(value)


def _word(_: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _names(_: str, value: Any) -> Any:
    """A text stays one: it is a pattern, a word such as ``all-linear``, or a name."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(value)
    return list(value)


_CHECKS: Mapping[Wanted, Callable[[str, Any], Any]] = {
    Wanted.WHOLE: _whole,
    Wanted.NUMBER: _number,
    Wanted.FLAG: _flag,
    Wanted.WORD: _word,
    Wanted.NAMES: _names,
}

_ADAPTER_KEYS: Mapping[str, str] = {
    "base_model_name_or_path": "model",
    "revision": "model_revision",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "target_parameters": "target_parameters",
    "modules_to_save": "trained_modules",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
_ADAPTER_DEFAULTS: Mapping[str, Any] = {
    "alpha": 8.0,
    "dropout": 0.0,
    "target_parameters": [],
    "trained_modules": [],
    "rslora": False,
    "dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""PEFT's, of LoRA (peft 0.21)."""

_RANK_KEYS = {Method.ADALORA: "target_r", Method.OFT: "oft_block_size"}


def _read_adapter(keys: Keys) -> Reading:
    """PEFT's configuration of an adapter."""
    method = PEFT_METHODS.get(str(keys.get("peft_type")).upper())
    settings: dict[str, Any] = {"method": method or str(keys.get("peft_type")).lower()}
    if method is Method.LORA:
        settings |= {**_ADAPTER_DEFAULTS, "rank": 8}
    rank_key = _RANK_KEYS.get(method, "r") if method else "r"
    names = {**_ADAPTER_KEYS, rank_key: "rank"}
    said, bad, key_of = {"method"}, [], {"method": "peft_type"}
    for name, setting in names.items():
        value = keys.get(name)
        if value is None:
            continue
        try:
            settings[setting] = _checked(setting, value)
        except (TypeError, ValueError):
            bad.append(BadValue(setting, name, value, KINDS.get(setting, Wanted.WORD)))
            continue
        said.add(setting)
        key_of[setting] = name
    initial = keys.get("init_lora_weights")
    settings["init_weights"] = initial if isinstance(initial, str) else None
    if settings.get("targets") == ["all-linear"]:
        settings["targets"] = "all-linear"
    return Reading(
        trainer=PEFT,
        keys=keys,
        settings=settings,
        said=frozenset(said),
        key_of=key_of,
        unknown=_unknown(keys, PEFT),
        ignored=_ignored(keys, PEFT, names),
        bad=tuple(bad),
    )
