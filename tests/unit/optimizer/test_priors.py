"""The published table orders adapters, by the nearest run of their method."""

from __future__ import annotations

import pytest

from rankwise.optimizer.domain import Adapter, Method
from rankwise.optimizer.priors import prior_quality


def lora(rank: int, target_set: str, **variant: bool) -> Adapter:
    return Adapter(method=Method.LORA, rank=rank, alpha=2.0 * rank, target_set=target_set, **variant)


@pytest.mark.parametrize(
    ("adapter", "accuracy"),
    [
        (lora(16, "minimal"), 0.4784),
        (lora(64, "balanced"), 0.4738),
        (lora(16, "full"), 0.4943),
        (lora(8, "minimal", use_rslora=True), 0.5133),
        (lora(64, "minimal", use_dora=True), 0.4693),
        (Adapter(method=Method.IA3, target_set="key,value,mlp_out"), 0.3980),
        (Adapter(method=Method.IA3, target_set="full"), 0.4549),
        (Adapter(method=Method.ADALORA, rank=8, target_set="full"), 0.3730),
        (Adapter(method=Method.OFT, rank=32, target_set="minimal"), 0.4913),
        (Adapter(method=Method.MISS, rank=64, target_set="minimal"), 0.4867),
        (Adapter(method=Method.FULL), 0.4716),
    ],
)
def test_the_nearest_published_run_counts(adapter, accuracy):
    assert prior_quality(adapter) == accuracy
