"""Adapters and levels as a trainer's command-line arguments."""

from __future__ import annotations

import pytest

from rankwise.optimizer.domain import Adapter, Level, Method, Quantization
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
        (
            Adapter(
                method=Method.LORA,
                rank=8,
                alpha=16.0,
                targets=("q_proj",),
                target_parameters=("experts.down_proj",),
                trained_modules=("score",),
                use_rslora=True,
                init_weights="pissa",
            ),
            "--use-peft --peft-method lora --lora-r 8 --lora-alpha 16 --lora-dropout 0 --use-rslora "
            "--lora-init pissa --lora-target-modules q_proj --lora-target-parameters experts.down_proj "
            "--modules-to-save score",
        ),
        (
            Adapter(method=Method.ADALORA, rank=8, initial_rank=12, alpha=24.0, targets=("q_proj",)),
            "--use-peft --peft-method adalora --lora-r 8 --lora-alpha 24 --lora-dropout 0 "
            "--adalora-init-r 12 --lora-target-modules q_proj",
        ),
        (
            Adapter(method=Method.IA3, targets=("down", "key"), feedforward=("down",)),
            "--use-peft --peft-method ia3 --lora-target-modules down,key --ia3-feedforward-modules down",
        ),
        (
            Adapter(method=Method.OFT, rank=32, targets=("query",)),
            "--use-peft --peft-method oft --oft-block-size 32 --lora-target-modules query",
        ),
        (
            Adapter(method=Method.MISS, rank=64, targets=("query",)),
            "--use-peft --peft-method miss --miss-r 64 --lora-target-modules query",
        ),
        (Adapter(method=Method.FULL), "--no-peft"),
    ],
)
def test_adapter_arguments(adapter, expected):
    assert " ".join(adapter_arguments(adapter)) == expected


@pytest.mark.parametrize("method", list(Method))
def test_every_method_can_be_written_out(method):
    arguments = adapter_arguments(Adapter(method=method, rank=8, alpha=16.0, targets=("a",)))
    assert (method.value in arguments) == (method is not Method.FULL)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (
            Level(),
            "--no-gradient-checkpointing --no-amp --quantization none --attention sdpa --loss plain "
            "--optimizer adamw_torch --no-compile --zero-stage 0 --no-cpu-offload",
        ),
        (
            Level(
                gradient_checkpointing=True,
                compute_dtype="bfloat16",
                quantization=Quantization.NF4,
                double_quantization=True,
                loss="chunked",
                compile=True,
                optimizer="adamw_8bit",
                zero_stage=2,
                offload="optimizer",
            ),
            "--gradient-checkpointing --amp bfloat16 --quantization nf4 --double-quantization "
            "--attention sdpa --loss chunked --optimizer adamw_8bit --compile --zero-stage 2 --cpu-offload",
        ),
    ],
)
def test_level_arguments(level, expected):
    assert " ".join(level_arguments(level)) == expected
