"""How rows become batches: the recipe that follows from data, model and request.

Knows nothing of adapters, devices or how batches are made.
"""

from __future__ import annotations

import math

from ..errors import DatasetError, InputError
from ..probes.profiles import DatasetProfile, ModelProfile, TaskKind
from .domain import LossMask, Recipe, StudyRequest

LENGTH_MULTIPLE = 64
"""Lengths are rounded up to this many tokens: matrix units work on such tiles anyway."""

PACKING_SHARE = 0.5
"""Rows whose mean length is at most this share of ``max_length`` are packed unasked."""

JUDGED_SHARE = 0.3
"""Held-out rows that a training is judged on, as a share of those that it trained on. Judging a row is a
forward pass, a quarter to a half of what training on it costs: about a tenth of the training's time."""

LEAST_JUDGED_ROWS = 128
"""Where there are so many, a training is judged on no fewer, however short it is."""

LOSS_MASKS = {
    TaskKind.CAUSAL_LM: (LossMask.ALL,),
    TaskKind.PROMPT_COMPLETION: (LossMask.COMPLETION, LossMask.ALL),
    TaskKind.CHAT: (LossMask.ASSISTANT, LossMask.ALL),
}
"""What can be learnt of a task's rows, first what is learnt unasked; other tasks learn their targets."""


def choose_recipe(
    dataset: DatasetProfile,
    model: ModelProfile,
    request: StudyRequest,
    *,
    chat_template_sha256: str | None = None,
) -> Recipe:
    """The user's recipe; where they named none, a ``max_length`` that leaves 99 % of the rows whole.

    Rows that are no text have no length, and are not packed.

    Causal tasks are packed where the model can and rows are short (:data:`PACKING_SHARE`).
    ``effective_batch`` then counts rows that are full of samples, so many that an optimizer step learns about
    as many tokens as the requested number of samples has: the power of two that comes nearest.

    Raises:
        InputError: the user's ``max_length`` exceeds what the model can read, no length is known, or packing
            or a loss mask was asked for that model or task do not allow.
    """
    loss_mask = _loss_mask(dataset.task.kind, request.loss_mask)
    rows, batch = dataset.usable_rows, request.effective_batch
    if dataset.task.kind.reads_arrays:
        _refuse_text_settings(dataset.task.kind, request)
        return Recipe(max_length=None, effective_batch=_effective_batch(rows, batch), epochs=request.epochs)
    max_length = _max_length(dataset, model, request.max_length)
    packing = _packing(dataset, model, request.packing, max_length)
    if packing:
        samples_per_row = max_length / _mean_length(dataset, max_length)
        batch = _nearest_power_of_two(batch / samples_per_row)
        rows = max(1, int(rows / samples_per_row))
    return Recipe(
        max_length=max_length,
        effective_batch=_effective_batch(rows, batch),
        epochs=request.epochs,
        packing=packing,
        chat_template_sha256=chat_template_sha256,
        loss_mask=loss_mask,
    )


def steps_for(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of a whole training on ``rows`` training rows; an epoch's partial batch is left out.

    Under packing a row is what several samples share. The training loop counts by itself, in
    ``runners/recipe.py``: a test holds the two together.
    """
    steps_per_epoch = max(1, rows // recipe.effective_batch)
    return max(1, round(steps_per_epoch * recipe.epochs))


def judged_rows(heldout: int, steps: int, recipe: Recipe) -> int:
    """On how many of the held-out rows a training of so many steps is judged, as all that are as long."""
    trained = steps * recipe.effective_batch
    return min(heldout, max(LEAST_JUDGED_ROWS, math.ceil(JUDGED_SHARE * trained)))


def _max_length(dataset: DatasetProfile, model: ModelProfile, requested: int | None) -> int:
    limit = model.max_positions
    if requested is not None:
        if limit is not None and requested > limit:
            raise InputError(
                f"max_length {requested} exceeds the {limit} positions of {model.source}",
                next_step=f"use at most {limit}",
            )
        return requested
    if dataset.lengths is None:
        raise DatasetError(
            f"no row of {dataset.source} has been tokenised, so its lengths are unknown",
            next_step="name a max_length",
        )
    rounded = math.ceil(dataset.lengths.p99 / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return rounded if limit is None else min(rounded, limit)


def _refuse_text_settings(kind: TaskKind, request: StudyRequest) -> None:
    for name in ("max_length", "packing"):
        if getattr(request, name):
            raise InputError(f"{name} is about texts, and the task is {kind}", next_step=f"leave {name} out")


def _loss_mask(kind: TaskKind, requested: LossMask | None) -> LossMask:
    allowed = LOSS_MASKS.get(kind, (LossMask.ALL,))
    if requested is None:
        return allowed[0]
    if requested not in allowed:
        raise InputError(
            f"the loss mask {requested} does not suit the task {kind}",
            next_step=f"pass --loss-mask {' or '.join(allowed)}, or leave it out",
        )
    return requested


def _packing(dataset: DatasetProfile, model: ModelProfile, requested: bool | None, max_length: int) -> bool:
    if requested is False:
        return False
    kind = dataset.task.kind
    if not (kind.is_causal and model.supports_packing):
        if requested:
            cause = (
                f"attention of {model.source} ({model.model_type}) cannot keep samples apart that share a row"
                if kind.is_causal
                else f"packing is for causal language models, and the task is {kind}"
            )
            raise InputError(cause, next_step="leave packing out")
        return False
    if requested:
        return True
    return dataset.lengths is not None and _mean_length(dataset, max_length) <= PACKING_SHARE * max_length


def _mean_length(dataset: DatasetProfile, max_length: int) -> float:
    """Of a row once truncated, at most; where lengths are unknown, rows are taken to be full."""
    return max_length if dataset.lengths is None else min(dataset.lengths.mean, max_length)


def _nearest_power_of_two(number: float) -> int:
    """At least 1. Micro-batches divide the effective batch: a power of two has many divisors."""
    return 1 << max(0, round(math.log2(number)))


def _effective_batch(rows: int, requested: int) -> int:
    """On tiny data the largest power of two that still makes an epoch of two steps."""
    if requested * 2 <= rows:
        return requested
    return min(requested, 1 << max(0, (rows // 2).bit_length() - 1))
