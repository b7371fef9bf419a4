"""Does the trial train what its candidate says, and nothing else?

A configuration can run at full speed and learn nothing: an adapter outside the forward path, inputs
without gradient under checkpointing, a head that PEFT left frozen. These checks compare the parameters
before and after three optimizer steps (after one, LoRA's A cannot have moved: B starts at zero).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..build import InvalidTrial
from ..recipe import Example, collate
from ..spreading import named_parts
from ..team import gathered
from .loop import Session

STEPS_BEFORE_CHECK = 3
NAMES_SHOWN = 3

ROUNDING = 1e-5
"""Of a weight, what a few steps of adding and subtracting in float32 may change."""

LEAK_SHARE = 0.01
"""Of the change in a sample's logits, what may show in its neighbours': 0 with exact kernels."""


class Diverged(Exception):
    """A loss was NaN or infinite."""


class ParameterWatch:
    """Fingerprints of all parameters, taken right after the adapter was initialised.

    Fingerprints are computed where the parameter lives and take a few bytes each, so that watching a large
    model costs two reads of it and no memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._before = fingerprints(model)
        self._rounded = {name: weight.clone() for name, weight in attention_weights(model).items()}

    def check(
        self,
        model: torch.nn.Module,
        *,
        lenient: bool,
        trained_parts: Sequence[str] = (),
        pruned: Collection[str] = (),
    ) -> None:
        """Compare with the present parameters.

        Args:
            lenient: the model's own weights are trained; then only those that the forward pass uses can
                change, and one that does not is no fault of the configuration.
            trained_parts: what of the model itself is to be trained; something of each must have changed.
            pruned: ends of the names of parameters that pruning took back to where they began.

        Raises:
            InvalidTrial: naming trained parameters that did not change, frozen ones that did, or a module
                that should be trained and is not.
        """
        after = fingerprints(model)
        weights = attention_weights(model)
        changed = set(gathered([name for name in after if after[name] != self._before[name]]))
        still = []
        moved = [
            name
            for name, before in self._rounded.items()
            if not torch.allclose(before, weights[name], rtol=ROUNDING, atol=ROUNDING)
        ]
        for name, parameter, _ in named_parts(model):
            if parameter.requires_grad and name not in changed and not name.endswith(tuple(pruned)):
                still.append(name)
            elif name in changed and not parameter.requires_grad:
                moved.append(name)
        names = [name for name, parameter, _ in named_parts(model) if parameter.requires_grad]
        trained = len(names)
        if trained == 0:
            raise InvalidTrial("nothing is trained: every parameter is frozen")
        if frozen := parts_without(trained_parts, names):
            raise InvalidTrial(f"{shorten(frozen)} should be trained, and is not")
        if moved:
            raise InvalidTrial(f"{len(moved)} frozen parameters changed: {shorten(moved)}")
        idle = parts_without(trained_parts, [name for name in names if name not in still])
        if still and (idle or not lenient or len(still) == trained):
            raise InvalidTrial(
                f"{len(still)} of {trained} trained parameters did not change in {STEPS_BEFORE_CHECK} steps: "
                f"{shorten(still)}; they are outside the forward path, or no gradient reaches them"
            )


def parts_without(parts: Sequence[str], names: Sequence[str]) -> list[str]:
    """The parts that none of these parameters belongs to."""
    return [part for part in parts if not any(f".{part}." in f".{name}." for name in names)]


@torch.no_grad()
def attention_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Frozen weights that PEFT (0.21) adds its LoRA to in each forward pass, and takes it off again.

    ``nn.MultiheadAttention`` reads them itself, so there is no other way; they come back rounded.
    """
    adapted = {
        f"{name}.base_layer"
        for name, module in model.named_modules()
        if type(module).__module__.startswith("peft.") and type(module).__name__ == "MultiheadAttention"
    }
    ends = ("in_proj_weight", "out_proj.base_layer.weight")
    names = {f"{name}.{end}" for name in adapted for end in ends}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


@torch.no_grad()
def fingerprints(model: torch.nn.Module) -> dict[str, tuple[int, str, str]]:
    """Three numbers a parameter, equal where its bits are: their XOR, and the sums of values and of sizes.

    Of parameters that several processes share, of this one's part; where that is empty there are none.

    Each alone is blind: XOR to equal values in even number (a norm's ones), sums to small changes, and the
    first two to opposite values, as two classes' biases are, which move by the same in opposite directions.
    Sums are kept as text because NaN equals nothing. Biases of quantized layers are left out:
    bitsandbytes (0.50) keeps casting them to the dtype of its input. So are :func:`attention_weights`.
    """
    left_out = attention_weights(model).keys() | {
        f"{name}.bias"
        for name, module in model.named_modules()
        if type(getattr(module, "weight", None)).__module__.startswith("bitsandbytes.")
    }
    return {
        name: (
            int(torch.hash_tensor(part).view(torch.int64)),
            float(part.sum()).hex(),
            float(sum_of_sizes(part)).hex(),
        )
        for name, _, part in named_parts(model)
        if name not in left_out and part.numel()
    }


def sum_of_sizes(parameter: torch.Tensor) -> torch.Tensor:
    """Of the absolute values, without a copy of them; of integers, as quantized weights are, the sum."""
    return torch.linalg.vector_norm(parameter, 1) if parameter.is_floating_point() else parameter.sum()


@torch.no_grad()
def require_separate_samples(session: Session, row: Example) -> None:
    """Raise :class:`InvalidTrial` if samples that share a row see each other.

    Compares logits before and after all tokens of the row's first sample are replaced. Of the row its first
    two samples are taken, twice where micro-batches have several rows: FlashAttention tells samples apart in
    batches of one row only.
    """
    assert row.starts is not None  # noqa: S101 - the caller chose a row that several samples share
    first, second_start, end = (*row.starts, len(row.input_ids))[:3]
    pair = Example(row.input_ids[first:end], starts=[first, second_start])
    batch = collate([pair] * min(2, session.candidate["micro_batch"]), pad_id=session.pad_id)
    batch = {name: value.to(session.device) for name, value in batch.items() if name != "labels"}
    ids = batch["input_ids"]
    vocabulary = session.bare_model.get_input_embeddings().num_embeddings
    other_ids = ids.clone()
    other_ids[:, :second_start] = (ids[:, :second_start] + 1) % vocabulary
    session.model.eval()
    with session.autocast(), int8_token_by_token(session.model):
        before = session.model(**batch).logits
        after = session.model(**{**batch, "input_ids": other_ids}).logits
    session.model.train()
    change = (after - before).abs()
    own, others = float(change[:, :second_start].max()), float(change[:, second_start:].max())
    if others > LEAK_SHARE * own:
        raise InvalidTrial(
            "samples that share a row see each other: new tokens in one change the logits of the next "
            f"({others / own:.0%} as much as its own), with attention "
            f"{session.candidate['level']['attention']}"
        )


@contextmanager
def int8_token_by_token(model: torch.nn.Module) -> Iterator[None]:
    """Let products with 8-bit weights treat each token by itself.

    bitsandbytes (0.50) otherwise computes columns apart in which any token of the batch is an outlier: what
    one sample says then shows, by a few hundredths, in all others.
    """
    states: list[Any] = [
        module.state for module in model.modules() if hasattr(getattr(module, "state", None), "threshold")
    ]
    before = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold


def require_finite(loss: float, step: int) -> None:
    """Raise :class:`Diverged` unless the loss is a number."""
    if not math.isfinite(loss):
        raise Diverged(f"loss became {loss} at optimizer step {step + 1}")


def shorten(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
