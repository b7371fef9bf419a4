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
    adapts_mlp: bool = False
    use_rslora: bool = False
    use_dora: bool = False


PUBLISHED = (
    PublishedQuality(method=Method.LORA, rank=32, accuracy=0.4784),
    PublishedQuality(method=Method.LORA, rank=64, accuracy=0.4738),
    PublishedQuality(method=Method.LORA, rank=64, accuracy=0.5133, use_rslora=True),
    PublishedQuality(method=Method.LORA, rank=32, accuracy=0.4693, use_dora=True),
    PublishedQuality(method=Method.LORA, rank=10, accuracy=0.4943, adapts_mlp=True),
    # Of the IA3 runs on key, value and down projection, the one at the better rate (1e-3, not 1e-4).
    PublishedQuality(method=Method.IA3, accuracy=0.3980, adapts_mlp=True),
    PublishedQuality(method=Method.FULL, accuracy=0.4716),
)


def prior_quality(adapter: Adapter) -> float:
    """Accuracy of the published run nearest to this adapter: same method, then variant, targets, rank."""

    def distance(row: PublishedQuality) -> tuple[bool, bool, bool, float]:
        return (
            row.use_rslora != adapter.use_rslora,
            row.use_dora != adapter.use_dora,
            row.adapts_mlp != (adapter.target_set == "full"),
            abs(math.log2((row.rank or 1) / (adapter.rank or 1))),
        )

    return min((row for row in PUBLISHED if row.method is adapter.method), key=distance).accuracy
