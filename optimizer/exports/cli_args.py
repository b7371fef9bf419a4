"""A candidate as command-line arguments of a trainer. Knows the names of the arguments only."""

from __future__ import annotations

from ..domain import Adapter, Level, Method


def adapter_arguments(adapter: Adapter) -> list[str]:
    """``--use-peft --peft-method lora --lora-r 16 …``, or ``--no-peft`` for full fine-tuning."""
    if adapter.method is Method.FULL:
        return ["--no-peft"]
    arguments = ["--use-peft", "--peft-method", adapter.method.value]
    if adapter.method is Method.LORA:
        arguments += ["--lora-r", str(adapter.rank)]
        arguments += ["--lora-alpha", f"{adapter.alpha:g}", "--lora-dropout", f"{adapter.dropout:g}"]
    return [*arguments, "--lora-target-modules", ",".join(adapter.targets)]


def level_arguments(level: Level) -> list[str]:
    """Checkpointing, mixed precision, attention, ZeRO stage and offload, each written out."""
    return [
        "--gradient-checkpointing" if level.gradient_checkpointing else "--no-gradient-checkpointing",
        *(["--amp", level.compute_dtype] if level.amp else ["--no-amp"]),
        *("--attention", level.attention),
        *("--zero-stage", str(level.zero_stage)),
        "--no-cpu-offload" if level.offload == "none" else "--cpu-offload",
    ]
