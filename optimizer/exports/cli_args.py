"""A candidate as command-line arguments of a trainer. Knows the names of the arguments only."""

from __future__ import annotations

from ..domain import Adapter, Level, Method


def adapter_arguments(adapter: Adapter) -> list[str]:
    """``--use-peft --peft-method lora --lora-r 16 …``, or ``--no-peft`` for full fine-tuning."""
    if adapter.method is Method.FULL:
        return ["--no-peft"]
    return [
        "--use-peft",
        *("--peft-method", adapter.method.value),
        *_own_arguments(adapter),
        *("--lora-target-modules", ",".join(adapter.targets)),
        *_listed("--lora-target-parameters", adapter.target_parameters),
        *_listed("--ia3-feedforward-modules", adapter.feedforward),
        *_listed("--modules-to-save", adapter.trained_modules),
    ]


def level_arguments(level: Level) -> list[str]:
    """Checkpointing, mixed precision, quantization, kernels, optimizer and sharding, each written out."""
    return [
        "--gradient-checkpointing" if level.gradient_checkpointing else "--no-gradient-checkpointing",
        *(["--amp", level.compute_dtype] if level.amp else ["--no-amp"]),
        *("--quantization", level.quantization.value),
        *(["--double-quantization"] if level.double_quantization else []),
        *("--attention", level.attention),
        *("--loss", level.loss),
        *("--optimizer", level.optimizer),
        "--compile" if level.compile else "--no-compile",
        *("--zero-stage", str(level.zero_stage)),
        "--no-cpu-offload" if level.offload == "none" else "--cpu-offload",
    ]


def _own_arguments(adapter: Adapter) -> list[str]:
    """What the method has besides its targets."""
    match adapter.method:
        case Method.LORA | Method.ADALORA:
            return [
                *("--lora-r", str(adapter.rank)),
                *("--lora-alpha", f"{adapter.alpha:g}"),
                *("--lora-dropout", f"{adapter.dropout:g}"),
                *(["--adalora-init-r", str(adapter.initial_rank)] if adapter.initial_rank else []),
                *(["--use-rslora"] if adapter.use_rslora else []),
                *(["--use-dora"] if adapter.use_dora else []),
                *(["--lora-init", adapter.init_weights] if adapter.init_weights else []),
            ]
        case Method.OFT:
            return ["--oft-block-size", str(adapter.rank)]
        case Method.MISS:
            return ["--miss-r", str(adapter.rank)]
        case _:
            return []


def _listed(name: str, values: tuple[str, ...]) -> list[str]:
    return [name, ",".join(values)] if values else []
