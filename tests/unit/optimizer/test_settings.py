"""Which of two candidates cannot need less memory: only what is certain is claimed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Level, Quantization
from rankwise.optimizer.settings import needs_at_least, varied


@pytest.mark.parametrize(
    "leaner",
    [
        {"gradient_checkpointing": True},
        {"quantization": Quantization.NF4},
        {"loss": "chunked"},
        {"optimizer": "paged_adamw_8bit"},
        {"micro_batch": 1},
        {"weight_dtype": "bfloat16", "compute_dtype": "bfloat16"},
    ],
)
def test_a_setting_that_saves_is_not_ruled_out_by_the_failure_of_one_that_does_not(build, candidates, leaner):
    plain = build.variant(candidates[0], attention="sdpa", micro_batch=8)
    lean = build.variant(plain, **leaner)
    assert needs_at_least(plain, lean)
    assert not needs_at_least(lean, plain)
    assert needs_at_least(plain, plain)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"compute_dtype": "bfloat16"}, {}),  # autocast holds a second copy of the weights
        ({"quantization": Quantization.NF4}, {"gradient_checkpointing": True}),
        ({"compile": True}, {}),
        ({"loss": "liger"}, {"loss": "chunked"}),
    ],
)
def test_what_cannot_be_known_is_left_open(build, candidates, one, other):
    first, second = (build.variant(candidates[0], **level) for level in (one, other))
    assert not needs_at_least(first, second)
    if one != {"compute_dtype": "bfloat16"}:
        assert not needs_at_least(second, first)


def test_only_single_differences_are_variations(build, candidates):
    best = candidates[0]
    loss, both = build.variant(best, loss="chunked"), build.variant(best, loss="chunked", compile=True)
    assert varied(best, [best, loss, both], "loss") == [loss]
    assert varied(best, [best, loss, both], "compile") == []


def test_ways_to_spread_are_varied_with_what_they_decide(candidates):
    """Dividing decides dtypes and does without quantization; each way has the micro-batch that suits it."""
    best = replace(candidates[0], level=Level(compute_dtype="bfloat16"), micro_batch=8)
    ddp = replace(best.level, processes=2)
    half = {"weight_dtype": "bfloat16", "compute_dtype": "bfloat16", "adapter_dtype": "bfloat16"}
    zero = Level(**half, processes=2, zero_stage=3)
    others = [
        replace(best, level=level, micro_batch=micro_batch)
        for level in (ddp, zero, replace(ddp, gradient_checkpointing=True), Level(**half, processes=2))
        for micro_batch in (16, 8, 4)
    ]
    assert varied(best, others, "processes") == [others[1], others[4]]
    quantized = replace(best, level=replace(best.level, quantization=Quantization.NF4), micro_batch=4)
    assert varied(quantized, others, "processes") == [others[5]]
    assert varied(others[4], [best, quantized], "processes") == [best, quantized]
    assert varied(best, others, "precision") == []
