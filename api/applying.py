"""A recommendation applied to the user's own module, from Python.

Reads what was recommended, from an object or from files. Imports torch only once there is something to apply.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import Candidate
from .documents import adapter_config_of
from .python import Recommendation

if TYPE_CHECKING:
    from torch import nn, optim

RECOMMENDATION_FILE = "recommendation.json"
ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was recommended, as plain data."""

    candidate: Mapping[str, Any]
    adapter_config: Mapping[str, Any] | None


def apply(
    model: nn.Module, recommendation: Recommendation | str | PathLike[str], *, skip: Collection[str] = ()
) -> nn.Module:
    """Make a module of yours what the recommended configuration trains: quantized, frozen, with the adapter.

    The module is changed in place and returned, wrapped by PEFT where there is an adapter. Its dtype is left
    to whoever trains it, as are batches, schedule and autocast (``training_args.json`` has them). Where that
    was recommended, and the model is not quantized yet, bitsandbytes' layers take the place of linear ones;
    without bitsandbytes a warning says so and everything else is done. AdaLoRA's ranks are pruned by calling
    ``model.base_model.update_and_allocate(step)`` after each step. Imports torch.

    Args:
        model: any module with the names that the recommendation was made for; on the CPU or a GPU.
        recommendation: what :func:`recommend` returned, or the folder that it wrote.
        skip: names of modules that are not quantized.

    Raises:
        InputError: the files cannot be read, or what was recommended does not fit the module.
    """
    from ..runners.applying import apply_candidate

    choice = read_choice(recommendation)
    return apply_candidate(model, choice.candidate, choice.adapter_config, skip=skip)


def optimizer_for(model: nn.Module, recommendation: Recommendation | str | PathLike[str]) -> optim.Optimizer:
    """The recommended optimizer with its learning rate and weight decay, over the trainable parameters only.

    Args:
        model: what :func:`apply` returned, on the device that it is trained on.
        recommendation: as there.

    Raises:
        InputError: nothing of the model is trained, or the optimizer cannot be had here.
    """
    from ..runners.applying import optimizer_of

    return optimizer_of(model, read_choice(recommendation).candidate)


def read_choice(recommendation: Recommendation | str | PathLike[str]) -> Choice:
    """The candidate and its adapter, from an object or from the files of one.

    Raises:
        InputError: a file is missing or holds something else.
    """
    if isinstance(recommendation, Recommendation):
        config = adapter_config_of(recommendation.study, recommendation.choice)
        return Choice(to_json(recommendation.candidate), config)
    folder = Path(recommendation)
    folder = folder.parent if folder.name == RECOMMENDATION_FILE else folder
    recommended = _read(folder / RECOMMENDATION_FILE).get("recommended")
    has_adapter = (folder / ADAPTER_FILE).is_file()
    return Choice(
        to_json(_candidate(recommended, folder)), _read(folder / ADAPTER_FILE) if has_adapter else None
    )


def _candidate(recommended: Any, folder: Path) -> Candidate:
    """What the document says of it, less what is derived; fields that it was written without get defaults."""
    try:
        return from_json(Candidate, {field.name: recommended[field.name] for field in fields(Candidate)})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / RECOMMENDATION_FILE} recommends nothing that can be applied ({error!r:.200})",
            next_step="name the folder that rankwise recommend --out wrote",
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{file} cannot be read ({reason})",
            next_step="name the folder that rankwise recommend --out, or Recommendation.save, wrote",
        ) from None
    return content
