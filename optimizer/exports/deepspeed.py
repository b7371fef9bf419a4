"""A candidate as DeepSpeed's configuration. Knows names and values, not DeepSpeed itself."""

from __future__ import annotations

from typing import Any

from ..domain import Candidate, Level

HOST = {"device": "cpu", "pin_memory": True}
SWITCHES = {"bfloat16": "bf16", "float16": "fp16"}
"""dtype → the block that has DeepSpeed keep weights in it, and float32 copies of what is trained."""


def deepspeed_config(candidate: Candidate) -> dict[str, Any] | None:
    """Plain JSON data for ``deepspeed.initialize`` (0.19), as in ``ds_config.json``; None without ZeRO.

    Trials and the exported program give DeepSpeed these very fields; what is left out has its default.
    """
    level = candidate.level
    if not level.uses_deepspeed:
        return None
    return {
        "train_micro_batch_size_per_gpu": candidate.micro_batch,
        "gradient_accumulation_steps": candidate.accumulation,
        "gradient_clipping": candidate.recipe.max_grad_norm,
        "zero_optimization": _zero(level),
        **_precision(level),
        # Optimizers that DeepSpeed did not make are the program's.
        "zero_allow_untested_optimizer": True,
    }


def _zero(level: Level) -> dict[str, Any]:
    block: dict[str, Any] = {"stage": level.zero_stage}
    if level.offload in ("optimizer", "all"):
        block["offload_optimizer"] = dict(HOST)
    if level.offload == "all":
        block["offload_param"] = dict(HOST)
    return block


def _precision(level: Level) -> dict[str, Any]:
    """Autocast keeps weights as they are; the older switch makes copies of them in float32."""
    if level.amp:
        return {"torch_autocast": {"enabled": True, "dtype": level.compute_dtype}}
    switch = SWITCHES.get(level.weight_dtype)
    return {} if switch is None else {switch: {"enabled": True}}
