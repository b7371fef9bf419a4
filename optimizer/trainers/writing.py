"""A training in a trainer's keys, with what these cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..domain import Candidate
from .cells import Cannot, Effect, Gap
from .settings import Settings, candidate_settings
from .table import TABLE, Trainer


class ExportRefused(InputError):
    """The file would train something else than what was recommended."""


@dataclass(frozen=True, slots=True)
class Written:
    """A trainer's keys for a training."""

    keys: dict[str, Any]
    gaps: tuple[Gap, ...]
    """What the keys do not say, in the order of the table."""


def write(settings: Settings, trainer: Trainer) -> Written:
    """Every setting in the trainer's words; nothing is refused here."""
    keys: dict[str, Any] = {}
    gaps: list[Gap] = []
    for setting, row in TABLE.items():
        try:
            keys |= row.cell(trainer).write(settings, setting)
        except Cannot as gap:
            keys |= gap.keys
            gaps.append(Gap(setting=setting, value=settings[setting], reason=gap.reason, effect=gap.effect))
    return Written(keys, tuple(gaps))


def training_arguments(candidate: Candidate, *, seed: int, on_cpu: bool) -> dict[str, Any]:
    """Plain JSON data that ``transformers.TrainingArguments(**data)`` takes.

    What a Trainer is not told by its arguments is left out: the adapter has a file of its own, and how the
    model is loaded and rows become batches is in the training program only.

    Args:
        candidate: what is to be trained.
        seed: of what is initialised, and of dropout. The Trainer orders rows in its own way.
        on_cpu: trials ran without a GPU.
    """
    return write({**candidate_settings(candidate), "seed": seed, "cpu": on_cpu}, Trainer.TRANSFORMERS).keys


def deepspeed_config(candidate: Candidate) -> dict[str, Any] | None:
    """Plain JSON data for ``deepspeed.initialize``, as in ``ds_config.json``; None without a ZeRO stage.

    Trials and the exported program give DeepSpeed these very fields; what is left out has its default.
    """
    if not candidate.level.uses_deepspeed:
        return None
    return write(candidate_settings(candidate), Trainer.DEEPSPEED).keys


def require_same_training(gaps: Sequence[Gap], who: str, *, instead: str) -> None:
    """Refuse keys that would train something else.

    Args:
        who: the trainer, as people call it.
        instead: a format that can say it.

    Raises:
        ExportRefused: naming the first such setting, its value and the reason.
    """
    for gap in gaps:
        if gap.effect is Effect.OTHER_TRAINING:
            raise ExportRefused(
                f"{who} cannot train this: {gap.setting} is {gap.value!r:.80}, and {gap.reason}",
                next_step=f"export it as {instead}",
            )
