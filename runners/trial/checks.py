"""Does the trial train what its candidate says, and nothing else?

A configuration can run at full speed and learn nothing: an adapter outside the forward path, inputs
without gradient under checkpointing, a head that PEFT left frozen. These checks compare the parameters
before and after three optimizer steps (after one, LoRA's A cannot have moved: B starts at zero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

STEPS_BEFORE_CHECK = 3
NAMES_SHOWN = 3


class InvalidTrial(Exception):
    """The trial ran, but not as configured."""


class Diverged(Exception):
    """A loss was NaN or infinite."""


class ParameterWatch:
    """Fingerprints of all parameters, taken right after the adapter was initialised.

    Fingerprints are computed where the parameter lives and take a few bytes each, so that watching a large
    model costs two reads of it and no memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._before = fingerprints(model)

    def check(self, model: torch.nn.Module, *, full: bool, trained_modules: Sequence[str] = ()) -> None:
        """Compare with the present parameters.

        Args:
            full: every weight is trained; then only those that the forward pass uses can change, and
                one that does not is no fault of the configuration.
            trained_modules: names of modules that are to be trained beside an adapter.

        Raises:
            InvalidTrial: naming trained parameters that did not change, frozen ones that did, or a module
                that should be trained and is not.
        """
        after = fingerprints(model)
        still, moved = [], []
        for name, parameter in model.named_parameters():
            changed = after[name] != self._before[name]
            if parameter.requires_grad and not changed:
                still.append(name)
            elif changed and not parameter.requires_grad:
                moved.append(name)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        trained = len(names)
        if trained == 0:
            raise InvalidTrial("nothing is trained: every parameter is frozen")
        if frozen := [
            part for part in trained_modules if not any(f".{part}." in f".{name}" for name in names)
        ]:
            raise InvalidTrial(f"{shorten(frozen)} should be trained beside the adapter, and is not")
        if moved:
            raise InvalidTrial(f"{len(moved)} frozen parameters changed: {shorten(moved)}")
        if still and (not full or len(still) == trained):
            raise InvalidTrial(
                f"{len(still)} of {trained} trained parameters did not change in {STEPS_BEFORE_CHECK} steps: "
                f"{shorten(still)}; they are outside the forward path, or no gradient reaches them"
            )


@torch.no_grad()
def fingerprints(model: torch.nn.Module) -> dict[str, tuple[int, str]]:
    """Two numbers a parameter, equal where its bits are: their XOR, and the sum of the values.

    Either alone is blind: XOR to equal values in even number (a norm's ones), the sum to small changes.
    The sum is kept as text because NaN equals nothing.
    """
    return {
        name: (int(torch.hash_tensor(parameter).view(torch.int64)), float(parameter.sum()).hex())
        for name, parameter in model.named_parameters()
    }


def require_finite(loss: float, step: int) -> None:
    """Raise :class:`Diverged` unless the loss is a number."""
    if not math.isfinite(loss):
        raise Diverged(f"loss became {loss} at optimizer step {step + 1}")


def shorten(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
