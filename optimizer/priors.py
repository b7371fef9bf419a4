"""What others published about the quality of adapters: a prior that orders what is tried first.

Never a measurement of the user's case, and never shown as one. Knows nothing of speed and memory: those
are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .domain import Adapter, Method

PRIOR_SOURCE = (
    "huggingface/peft method_comparison, MetaMathQA results at commit 5d602fdbf: Llama-3.2-3B on one L40S, "
    "accuracy on GSM8K; one model, one task, one seed (repeats vary by 1 to 3 points)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuality:
    """One published run of a method that rankwise can try."""

    method: Method
    accuracy: float
    """Share of test questions answered correctly."""
    rank: int | None = None
    target_set: str = "minimal"
    """The nearest of rankwise's target sets."""
    use_rslora: bool = False
    use_dora: bool = False


PUBLISHED = (
    PublishedQuality(method=Method.LORA, rank=32, accuracy=0.4784),
    PublishedQuality(method=Method.LORA, rank=64, accuracy=0.4738),
    PublishedQuality(method=Method.LORA, rank=64, accuracy=0.5133, use_rslora=True),
    PublishedQuality(method=Method.LORA, rank=32, accuracy=0.4693, use_dora=True),
    # On the MLP's three matrices, without attention.
    PublishedQuality(method=Method.LORA, rank=10, accuracy=0.4943, target_set="full"),
    PublishedQuality(method=Method.ADALORA, rank=32, accuracy=0.3730),
    # Of the IA3 runs on key, value and down projection, the one at the better rate (1e-3, not 1e-4).
    PublishedQuality(method=Method.IA3, accuracy=0.3980, target_set="key,value,mlp_out"),
    PublishedQuality(method=Method.IA3, accuracy=0.4549, target_set="full"),
    # 32 blocks of 96; rankwise counts the block's size.
    PublishedQuality(method=Method.OFT, rank=96, accuracy=0.4913),
    PublishedQuality(method=Method.MISS, rank=64, accuracy=0.4867),
    PublishedQuality(method=Method.FULL, accuracy=0.4716),
)


def published_quality(adapter: Adapter) -> float | None:
    """Accuracy of the published run nearest to this adapter: same method, then variant, targets, rank.

    None where none is of its method.
    """
    row = _nearest(adapter)
    return None if row is None else row.accuracy


def prior_quality(adapter: Adapter) -> float:
    """As :func:`published_quality`; the least that was published where nothing was, so that it comes last."""
    quality = published_quality(adapter)
    return min(row.accuracy for row in PUBLISHED) if quality is None else quality


UNKNOWN_DISTANCE = (True, True, True, True, math.inf)
"""Of what nothing was published about."""


def prior_distance(adapter: Adapter) -> tuple[bool, bool, bool, bool, float]:
    """How far that run is from the adapter: which, among equal priors, deserves its prior more."""
    row = _nearest(adapter)
    return UNKNOWN_DISTANCE if row is None else _distance(row, adapter)


def _nearest(adapter: Adapter) -> PublishedQuality | None:
    rows = (row for row in PUBLISHED if row.method is adapter.method)
    return min(rows, key=lambda row: _distance(row, adapter), default=None)


def _distance(row: PublishedQuality, adapter: Adapter) -> tuple[bool, bool, bool, bool, float]:
    return (
        row.use_rslora != adapter.use_rslora,
        row.use_dora != adapter.use_dora,
        _adapts_mlp(row.target_set) != _adapts_mlp(adapter.target_set),
        row.target_set != adapter.target_set,
        abs(math.log2((row.rank or 1) / (adapter.rank or 1))),
    )


def _adapts_mlp(target_set: str) -> bool:
    return target_set == "full" or target_set.endswith("mlp_out")
