"""How rows become batches: the recipe that follows from data, model and request.

Knows nothing of adapters, devices or how batches are made.
"""

from __future__ import annotations

import math

from ..errors import DatasetError, InputError
from ..probes.profiles import DatasetProfile, ModelProfile
from .domain import Recipe, StudyRequest

LENGTH_MULTIPLE = 64
"""Lengths are rounded up to this many tokens: matrix units work on such tiles anyway."""


def choose_recipe(dataset: DatasetProfile, model: ModelProfile, request: StudyRequest) -> Recipe:
    """The user's recipe, with a ``max_length`` that leaves 99 % of the rows whole where they named none.

    Raises:
        InputError: the user's ``max_length`` exceeds what the model can read, or no length is known.
    """
    return Recipe(
        max_length=_max_length(dataset, model, request.max_length),
        effective_batch=_effective_batch(dataset.usable_rows, request.effective_batch),
        epochs=request.epochs,
    )


def steps_for(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of a whole training on ``rows`` training rows; an epoch's partial batch is left out.

    The training loop counts by itself, in ``runners/recipe.py``: a test holds the two together.
    """
    steps_per_epoch = max(1, rows // recipe.effective_batch)
    return max(1, round(steps_per_epoch * recipe.epochs))


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


def _effective_batch(rows: int, requested: int) -> int:
    """On tiny data the largest power of two that still makes an epoch of two steps."""
    if requested * 2 <= rows:
        return requested
    return min(requested, 1 << max(0, (rows // 2).bit_length() - 1))
