"""Adapters and levels as a trainer's command-line arguments."""

from __future__ import annotations

import pytest

from rankwise.optimizer.domain import Adapter, Level, Method
from rankwise.optimizer.exports.cli_args import adapter_arguments, level_arguments


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (
            Adapter(method=Method.LORA, rank=16, alpha=32.0, dropout=0.05, targets=("q_proj", "v_proj")),
            "--use-peft --peft-method lora --lora-r 16 --lora-alpha 32 --lora-dropout 0.05 "
            "--lora-target-modules q_proj,v_proj",
        ),
        (
            Adapter(method=Method.IA3, targets=("key", "value")),
            "--use-peft --peft-method ia3 --lora-target-modules key,value",
        ),
        (Adapter(method=Method.FULL), "--no-peft"),
    ],
)
def test_adapter_arguments(adapter, expected):
    assert " ".join(adapter_arguments(adapter)) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (Level(), "--no-gradient-checkpointing --no-amp --attention sdpa --zero-stage 0 --no-cpu-offload"),
        (
            Level(gradient_checkpointing=True, compute_dtype="bfloat16", zero_stage=2, offload="cpu"),
            "--gradient-checkpointing --amp bfloat16 --attention sdpa --zero-stage 2 --cpu-offload",
        ),
    ],
)
def test_level_arguments(level, expected):
    assert " ".join(level_arguments(level)) == expected
