"""What is told of a trainer's file, and what it is told from: the words of findings and of their rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..domain import Method
from .reading import TRAINING_FORMATS, Reading
from .table import VERSIONS, Trainer


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """It will not run, or train something else than what is written."""
    WARNING = "warning"
    """It runs, and is hardly meant."""
    HINT = "hint"
    """Something else would do better, or is worth knowing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about a file."""

    id: str
    severity: Severity
    message: str
    """A sentence, without its full stop: what is written, and what comes of it."""
    next_step: str = ""
    key: str | None = None
    """Of the file; None is the whole."""
    versions: str | None = None
    """What it was seen with; None where it follows from arithmetic or from the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A file's settings with what is known around them."""

    reading: Reading
    deepspeed: Reading | None = None
    adapter: Reading | None = None
    gpus: int | None = None
    """None where nobody said."""
    libraries: frozenset[str] | None = None
    """That are installed where it will run; None where that is another machine."""
    hidden_size: int | None = None
    architecture: str | None = None
    """Of the model, by its configuration; None where that is not at hand."""

    @property
    def keys(self) -> Mapping[str, Any]:
        """Of the file itself."""
        return self.reading.keys

    @property
    def is_lora(self) -> bool:
        """LoRA or one of its variants."""
        return self.reading.method is Method.LORA

    @property
    def trains(self) -> bool:
        """The file is a training's, not a launcher's."""
        return self.reading.trainer in TRAINING_FORMATS

    @property
    def computes_in_half(self) -> bool:
        """Some 16-bit dtype is computed in."""
        return self.reading.get("autocast") is not None or self.reading.get("weight_dtype") in (
            *("bfloat16", "float16", "auto"),
        )

    @property
    def scale(self) -> float | None:
        """By what LoRA's product is multiplied."""
        rank, alpha = self.reading.get("rank"), self.reading.get("alpha")
        if not self.is_lora or not rank or alpha is None:
            return None
        return float(alpha / (math.sqrt(rank) if self.reading.get("rslora") else rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRule:
    """One thing that may be wrong."""

    id: str
    severity: Severity
    applies: Callable[[Facts], bool]
    message: Callable[[Facts], str]
    next_step: str
    keys: tuple[str, ...] = ()
    """The first of them that the file has is pointed at; a setting's name stands for its key."""
    versions: str | None = None


def called(trainer: str) -> str:
    names = {
        "transformers": "transformers' TrainingArguments",
        "trl": "TRL's SFT",
        "axolotl": "Axolotl",
        "llamafactory": "LLaMA-Factory",
        "accelerate": "accelerate",
        "deepspeed": "DeepSpeed",
    }
    return names.get(trainer, "PEFT's configuration")


def version_of(trainer: str) -> str | None:
    known = {each.value: each for each in Trainer}
    return f"{trainer} {VERSIONS[known[trainer]]}" if trainer in known else "peft 0.21"
