"""The list of checks, in the order of cost and of what they tell.

Knows nothing of the command line and of where results go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from device_checks.bench import MICRO_BATCH, Bench, Wish
from device_checks.processes import check_killed, check_probes, check_warm_start
from device_checks.trials import check_oom_at_limit, check_oom_on_device, check_trial
from rankwise.optimizer.domain import Method, Quantization

Figures = dict[str, Any]

CHECKPOINTED = {"gradient_checkpointing": True}
NF4 = {"quantization": Quantization.NF4}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "lora": {},
    "lora-checkpointing": {"changes": CHECKPOINTED, "leaner_than": "lora"},
    "qlora-nf4": {"changes": NF4},
    "qlora-nf4-double": {"changes": {**NF4, "double_quantization": True}},
    "lora-int8": {"changes": {"quantization": Quantization.INT8}},
    "lora-chunked-loss": {"changes": {"loss": "chunked"}, "leaner_than": "lora"},
    "lora-liger-loss": {"changes": {"loss": "liger"}, "leaner_than": "lora"},
    "lora-flash-attention": {"changes": {"attention": "flash_attention_2"}},
    "lora-eager-attention": {"changes": {"attention": "eager"}},
    "adalora": {"method": Method.ADALORA},
    "ia3": {"method": Method.IA3},
    "last-blocks": {"method": Method.LAST_BLOCKS},
    "last-blocks-nf4": {"method": Method.LAST_BLOCKS, "changes": NF4},
    "norms-checkpointing": {"method": Method.NORMS, "changes": CHECKPOINTED},
    "full": {"method": Method.FULL},
    "full-fused-optimizer": {"method": Method.FULL, "changes": {"optimizer": "adamw_torch_fused"}},
    "full-8bit-optimizer": {
        "method": Method.FULL,
        "changes": {"optimizer": "adamw_8bit"},
        "leaner_than": "full",
    },
    "full-paged-optimizer": {"method": Method.FULL, "changes": {"optimizer": "paged_adamw_8bit"}},
    "lora-compile": {"changes": {"compile": True}},
}
"""Checks of one setting each, on the bench's small model."""

SHAPE_ORDER = ("0.1b", "1b", "3b", "8b")
SHAPE_LEVELS: Mapping[str, Mapping[str, Any]] = {"qlora-nf4": CHECKPOINTED | NF4, "lora": CHECKPOINTED}


@dataclass(frozen=True, slots=True)
class Check:
    """One named check."""

    name: str
    what: str
    """What it shows, in a sentence."""
    run: Callable[[Bench, Figures], None]
    """Returns where all is as it should be; raises Failed or Skipped."""
    needs_gpu: bool = False


def all_checks() -> tuple[Check, ...]:
    """Every check, the cheapest and most telling first."""
    settings = [
        Check(f"trial-{name}", f"a trial of {name}", partial(check_trial, name=name, **arguments))
        for name, arguments in SETTINGS.items()
    ]
    shapes = [
        Check(
            f"shape-{shape}-{name}",
            f"{name} on random weights of {shape} parameters",
            partial(
                check_trial,
                name=f"{shape}-{name}",
                wish=Wish(shape=shape, level=level, micro_batch=1, effective_batch=MICRO_BATCH),
            ),
            needs_gpu=True,
        )
        for shape in SHAPE_ORDER
        for name, level in SHAPE_LEVELS.items()
    ]
    first, *others = settings
    return (
        Check("probes", "NVML's devices are CUDA's, under every environment", check_probes, needs_gpu=True),
        Check("warm-start", "the warm server leaves CUDA to its children", check_warm_start),
        first,
        Check("killed-trial", "a killed trial's memory is free again", check_killed),
        Check("oom-at-limit", "too much for the study's limit is oom", check_oom_at_limit),
        Check("oom-on-device", "too much for the device is oom", check_oom_on_device, needs_gpu=True),
        *others,
        *shapes,
    )
