"""The settings in which candidates of one adapter differ, and which of two cannot need less memory.

Knows nothing of trials and their figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace

from .domain import Candidate, Level, Quantization


def settings_of(candidate: Candidate) -> dict[str, object]:
    """Each setting's value; some are made of several fields of the level."""
    level = candidate.level
    return {
        "precision": (level.weight_dtype, level.compute_dtype, level.adapter_dtype),
        "checkpointing": level.gradient_checkpointing,
        "quantization": (level.quantization, level.double_quantization),
        "processes": (level.processes, level.zero_stage, level.fsdp, level.offload),
        "loss": level.loss,
        "compile": level.compile,
        "optimizer": level.optimizer,
        "attention": level.attention,
        "micro_batch": candidate.micro_batch,
    }


def varied(best: Candidate, own: Iterable[Candidate], setting: str) -> list[Candidate]:
    """The candidates that differ from the best in this setting and in no other.

    How weights are divided decides of their dtypes, and lets them do without quantization; how many
    processes there are, of the micro-batch. These may differ too with ``processes``, of which each way comes
    once, with the largest micro-batch that is not above the best's.
    """
    settings = settings_of(best)

    def differing(candidate: Candidate) -> set[str]:
        return {name for name, value in settings_of(candidate).items() if value != settings[name]}

    if setting != "processes":
        return [candidate for candidate in own if differing(candidate) == {setting}]
    largest: dict[Level, Candidate] = {}
    for candidate in own:
        other = differing(candidate)
        if setting not in other or candidate.micro_batch > best.micro_batch:
            continue
        if other - {setting, "micro_batch"} - (_DECIDED if _is_divided(candidate, best) else set()):
            continue
        known = largest.get(candidate.level)
        if known is None or known.micro_batch < candidate.micro_batch:
            largest[candidate.level] = candidate
    return list(largest.values())


_DECIDED = {"precision", "quantization"}
"""Settings that dividing decides."""


def _is_divided(*candidates: Candidate) -> bool:
    return any(candidate.level.zero_stage or candidate.level.fsdp for candidate in candidates)


def uncheckpointed(candidate: Candidate) -> Level:
    """The level without checkpointing."""
    return replace(candidate.level, gradient_checkpointing=False)


def needs_at_least(candidate: Candidate, other: Candidate) -> bool:
    """Whether memory cannot be less: the same adapter and recipe, and no setting that saves more."""
    return (
        candidate.micro_batch >= other.micro_batch
        and candidate.adapter == other.adapter
        and candidate.recipe == other.recipe
        and _saves_no_more(candidate.level, other.level)
    )


_SAVINGS: Mapping[str, Sequence[object]] = {
    "gradient_checkpointing": (False, True),
    "quantization": (Quantization.NONE, Quantization.INT8, Quantization.NF4),
    "double_quantization": (False, True),
    "loss": ("plain", "chunked"),
    "optimizer": ("adamw_torch", "adamw_8bit", "paged_adamw_8bit"),
    "attention": ("eager", "sdpa"),
    "offload": ("none", "optimizer", "all"),
}
"""Values of a level's fields, each saving memory over those before it; others are not compared."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _saves_no_more(level: Level, other: Level) -> bool:
    """Whether no field of ``level`` has a value that saves memory over that of ``other``."""
    for name in (item.name for item in fields(Level) if not item.name.endswith("_dtype")):
        own, theirs = getattr(level, name), getattr(other, name)
        if own == theirs:
            continue
        order = _SAVINGS.get(name, ())
        if own not in order or theirs not in order or order.index(own) > order.index(theirs):
            return False
    own_dtypes, their_dtypes = (
        (each.weight_dtype, each.compute_dtype, each.adapter_dtype) for each in (level, other)
    )
    if own_dtypes == their_dtypes:
        return True
    # Autocast keeps a copy of the weights in the dtype that it computes in: it may need more than float32.
    return other.weight_dtype == other.compute_dtype and all(
        _BYTES[own] >= _BYTES[theirs] for own, theirs in zip(own_dtypes, their_dtypes, strict=True)
    )
