"""How a model is called and what its loss is, whatever it takes and returns.

transformers' models take keywords and return their loss. Any other module is called by keyword where names
match, by position where there is one input, and may return scores, numbers, a loss, or several of these.
Imports nothing of rankwise but :mod:`.build` and :mod:`.recipe`, which are free of it too: it is part of what
the exported script is made of. Knows nothing of training.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss

from .build import InvalidTrial
from .recipe import IGNORED_LABEL

TARGET = "labels"
"""Under this name a batch holds what is to be predicted."""
TARGET_ARGUMENTS = (TARGET, "future_values", "target_values", "label", "targets", "target", "y")
"""What forward passes call it, preferred first."""
DISPENSABLE = ("attention_mask", "token_type_ids")
"""What tokenizers add, and a module that does not ask for it goes without."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a forward pass."""

    names: tuple[str, ...]
    takes_any: bool
    """It has ``**kwargs``."""

    @property
    def target(self) -> str | None:
        """The argument for what is to be predicted."""
        named = next((name for name in TARGET_ARGUMENTS if name in self.names), None)
        return TARGET if named is None and self.takes_any else named


@cache
def signature_of(kind: Any) -> Signature:
    """Of a class of modules."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return Signature(
        tuple(parameter.name for parameter in parameters if parameter.kind in named),
        any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters),
    )


def run_model(model: Any, batch: Mapping[str, torch.Tensor], *, call: Any = None) -> Any:
    """What the model returns for a batch of ``collate``; it gets the target where it takes one.

    Args:
        call: what is called in the model's place, with the same arguments.

    Raises:
        InvalidTrial: its arguments and the data's names do not go together.
    """
    call = call or model
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    kind: Any = type(base)
    signature = signature_of(kind)
    given = {name: value for name, value in batch.items() if name != TARGET}
    inputs = {
        name: value
        for name, value in given.items()
        if name in signature.names or signature.takes_any or name not in DISPENSABLE
    }
    # A target's argument may be called like one of the inputs: then it is that input's.
    target = signature.target if TARGET in batch and signature.target not in inputs else None
    targets = {} if target is None else {target: batch[TARGET]}
    unknown = [name for name in inputs if name not in signature.names]
    if len(inputs) == 1 and unknown and signature.names:
        return call(*inputs.values(), **targets)
    if unknown and not signature.takes_any:
        raise InvalidTrial(
            f"{type(base).__name__} takes {', '.join(signature.names) or 'nothing'}, and the data have "
            f"{', '.join(inputs)}: name the arrays like the arguments"
        )
    return call(**inputs, **targets)


def batch_loss(output: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What is minimised: the model's own loss where it returns one, else the task's.

    Raises:
        InvalidTrial: there is neither, or what is returned is not shaped like the target.
    """
    own = own_loss(output)
    if own is not None:
        return own
    if TARGET not in batch:
        raise InvalidTrial(
            f"the module returned {type(output).__name__} without a loss, and the data have no target: "
            "return the loss, or an output with a field or key 'loss'"
        )
    return task_loss(predictions(output), batch[TARGET])


def own_loss(output: Any) -> torch.Tensor | None:
    """The loss in what a model returned: what is called so, or a single number that comes first."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(named, torch.Tensor):
        return named.reshape(()) if named.numel() == 1 else named.mean()
    first = next(iter(output), None) if isinstance(output, (tuple, list)) else output
    return first if isinstance(first, torch.Tensor) and first.dim() == 0 else None


def predictions(output: Any) -> torch.Tensor | None:
    """The first tensor that a model returned, losses left out: scores of classes, or numbers."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    values: Any = (named, output)
    if isinstance(output, Mapping):
        values = (named, *(value for name, value in output.items() if name != "loss"))
    elif isinstance(output, (tuple, list)):
        values = output
    return next((value for value in values if isinstance(value, torch.Tensor) and value.dim() > 0), None)


def has_logits(output: Any) -> bool:
    """What a model returned says that its numbers are logits."""
    return (
        output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    ) is not None


def task_loss(predicted: torch.Tensor | None, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy of classes (tokens: each predicts the next), the mean squared error of numbers."""
    if predicted is None:
        raise InvalidTrial("the module returned neither a loss nor a tensor as the first of its outputs")
    predicted = predicted.float()
    if target.is_floating_point():
        return mse_loss(fitted(predicted, target), target)
    if target.dim() == 2:
        predicted, target = predicted[:, :-1].flatten(0, 1), target[:, 1:].flatten()
    return cross_entropy(class_scores(predicted, target), target, ignore_index=IGNORED_LABEL)


def is_fitting(predicted: torch.Tensor, target: torch.Tensor) -> bool:
    """There are as many numbers as there are to predict, or for each class a row of scores."""
    if not target.is_floating_point():
        return predicted.dim() == 2 and len(predicted) == len(target)
    return [size for size in predicted.shape if size > 1] == [size for size in target.shape if size > 1]


def fitted(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Numbers in the target's shape; axes of length one may be more or fewer.

    Raises:
        InvalidTrial: there are more or fewer numbers.
    """
    if not is_fitting(predicted, target):
        raise InvalidTrial(
            f"the module returns numbers of shape {list(predicted.shape[1:])} a row, and the target has "
            f"{list(target.shape[1:])}"
        )
    return predicted.reshape(target.shape)


def class_scores(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scores of classes, (rows, classes).

    Raises:
        InvalidTrial: they are shaped otherwise, or there are too few classes.
    """
    if not is_fitting(predicted, target):
        raise InvalidTrial(
            f"the module returns {list(predicted.shape)} for {len(target)} classes to predict: it has to "
            "return one row of scores for each"
        )
    return predicted
