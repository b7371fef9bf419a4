"""Which of two candidates cannot need less memory: only what is certain is claimed."""

from __future__ import annotations

import pytest

from rankwise.optimizer.domain import Quantization
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
