"""A trainer's settings as an estimate asks for them. Knows nothing of what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..optimizer.domain import Method, Quantization
from ..optimizer.trainers.as_estimate import as_estimate, targets_of
from ..optimizer.trainers.reading import Reading
from ..probes.model_source import is_hub_id
from ..probes.paths import resolve_path
from .own_lora import simple_expression
from .trainer_files import TrainerFile, load_trainer_file

if TYPE_CHECKING:
    from .estimates import EstimateOptions


def estimate_options(reading: Reading) -> EstimateOptions:
    """What an estimate of this training is asked with; what the file leaves open is left out.

    Raises:
        InputError: a pattern that no names should be held against.
    """
    targets = targets_of(reading)
    if targets.startswith("re:"):
        simple_expression(targets.removeprefix("re:"))
    return as_estimate(reading)  # type: ignore[return-value]


def question_in(source: str, given: EstimateOptions) -> tuple[str, EstimateOptions]:
    """The model that a trainer's file names, and what is asked of it; what is given besides counts more.

    Raises:
        InputError: the file cannot be read, names no model, or a method that is not known here.
    """
    file = load_trainer_file(source)
    model = model_of(file, None)
    if model is None:
        raise InputError(f"{source} names no model", next_step="name the model, and settings as options")
    reading = file.reading
    if reading.bad:
        bad = reading.bad[0]
        raise InputError(
            f"{source}: {bad.key} is {bad.value!r:.80}, and has to be {bad.wanted}", next_step="correct it"
        )
    if reading.method is None and "method" not in given:
        raise InputError(
            f"rankwise does not know the method {reading.get('method')!r:.40} of {source}",
            next_step="name another with --method",
        )
    return model, {**estimate_options(reading), **given}


def model_of(file: TrainerFile, roots: Sequence[Path] | None) -> str | None:
    """The model as the trainer would find it, else beside the file; None where none is named."""
    told = file.reading.get("model")
    if not isinstance(told, str) or not told.strip():
        return None
    if file.folder is not None and not Path(told).is_absolute() and not Path(told).exists():
        beside = file.folder / told
        if beside.exists():
            return str(resolve_path(str(beside), roots))
    revision = file.reading.get("model_revision")
    return f"{told}@{revision}" if revision and is_hub_id(told) else told


def better_split(micro_batch: int, accumulation: int, most: int) -> tuple[int, int] | None:
    """The largest micro-batch with which the same rows make a step; None where it is the present one."""
    rows = micro_batch * accumulation
    sizes = (size for size in range(min(most, rows), 0, -1) if rows % size == 0)
    best = next(sizes, micro_batch)
    return None if best == micro_batch else (best, math.ceil(rows / best))


def leaner(reading: Reading, options: EstimateOptions) -> list[tuple[str, EstimateOptions]]:
    """What may fit where this does not, the mildest first, each with what is changed in words."""
    found: list[tuple[str, EstimateOptions]] = []
    checkpointed: EstimateOptions = {**options, "gradient_checkpointing": True}
    if not options.get("gradient_checkpointing"):
        found.append(("gradient checkpointing", checkpointed))
    if (reading.method or Method.LORA).has_adapter and reading.quantization is Quantization.NONE:
        quantized: EstimateOptions = {**checkpointed, "quantization": Quantization.NF4.value}
        also = "" if options.get("gradient_checkpointing") else " and gradient checkpointing"
        found.append((f"nf4 weights (load_in_4bit){also}", quantized))
    return found
