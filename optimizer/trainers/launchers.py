"""accelerate's and DeepSpeed's words: what they are told beside the training program."""

from __future__ import annotations

from typing import Any

from .cells import Cannot, Effect, Keys, Unsaid
from .hugging_face import SIXTEEN_BIT
from .settings import Settings

HOST = {"device": "cpu", "pin_memory": True}


def mixed_precision(settings: Settings) -> Keys:
    """accelerate's autocast."""
    dtype = settings["autocast"]
    return {"mixed_precision": "no" if dtype is None else SIXTEEN_BIT[dtype]}


def read_mixed_precision(keys: Keys) -> str | None:
    """None where it is off."""
    told = keys.get("mixed_precision")
    return next((dtype for dtype, flag in SIXTEEN_BIT.items() if flag == told), None)


def processes(settings: Settings) -> Keys:
    """Which processes are started, all on this machine; they meet on whichever port is free."""
    keys = {"num_processes": settings["processes"], "num_machines": 1, "machine_rank": 0}
    return keys if settings["processes"] == 1 else {**keys, "main_process_port": 0}


def accelerate_sharding(settings: Settings) -> Keys:
    """How processes share a model; the program tells accelerate the same."""
    if settings["zero_stage"]:
        return {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {"deepspeed_config_file": "ds_config.json"},
        }
    if settings["fsdp"]:
        return {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": settings["fsdp"]}}
    if settings["processes"] == 1:
        return {"distributed_type": "NO"}
    return {"distributed_type": "MULTI_CPU" if settings.get("cpu") else "MULTI_GPU"}


def read_accelerate_fsdp(keys: Keys) -> int:
    """0 without FSDP; accelerate's own default is 1."""
    return int((keys.get("fsdp_config") or {}).get("fsdp_version") or 1) if keys.get("fsdp_config") else 0


def alone(settings: Settings) -> Keys:
    """Of trainers whose file says nothing of launching: one process does the work of all."""
    if settings["processes"] > 1:
        raise Cannot("one process trains, and accumulates as much more", Effect.OTHER_COST)
    return {}


def accumulated_alone(settings: Settings) -> Keys:
    """Micro-batches of one process for a step as long as that of all of them."""
    return {"gradient_accumulation_steps": settings["accumulation"] * settings["processes"]}


def undivided(settings: Settings, name: str) -> Keys:
    """Of trainers whose file is written without DeepSpeed's, and without accelerate's."""
    if settings[name]:
        raise Cannot("nothing is divided (in the format accelerate it is)", Effect.OTHER_COST)
    return {}


def read_undivided(keys: Keys) -> int:
    """0 where nothing divides states; DeepSpeed's own file, or block, tells its stage."""
    if any(keys.get(name) for name in ("deepspeed", "fsdp", "fsdp_config", "fsdp_version")):
        raise Unsaid
    return 0


def read_accelerate_zero(keys: Keys) -> int:
    """0 without DeepSpeed."""
    return int((keys.get("deepspeed_config") or {}).get("zero_stage") or 0)


def zero(settings: Settings) -> Keys:
    """The stage, and what is kept in the host's memory."""
    block: dict[str, Any] = {"stage": settings["zero_stage"]}
    if settings["offload"] in ("optimizer", "all"):
        block["offload_optimizer"] = dict(HOST)
    if settings["offload"] == "all":
        block["offload_param"] = dict(HOST)
    return {"zero_optimization": block}


def read_zero(keys: Keys) -> int:
    """0 without the block."""
    return int((keys.get("zero_optimization") or {}).get("stage") or 0)


def read_offload(keys: Keys) -> str:
    """See :func:`zero`."""
    block = keys.get("zero_optimization") or {}
    named = {name: (block.get(name) or {}).get("device") for name in ("offload_param", "offload_optimizer")}
    if named["offload_param"] == "cpu":
        return "all"
    return "optimizer" if named["offload_optimizer"] == "cpu" else "none"


def deepspeed_precision(settings: Settings) -> Keys:
    """Autocast keeps weights as they are; the older switch makes copies of them in float32."""
    dtype = settings["autocast"]
    if dtype is not None:
        return {"torch_autocast": {"enabled": True, "dtype": dtype}}
    if settings["weight_dtype"] in SIXTEEN_BIT:
        return {SIXTEEN_BIT[settings["weight_dtype"]]: {"enabled": True}}
    return {}


def read_deepspeed_precision(keys: Keys) -> str | None:
    """None where it is off, or left to the program."""
    autocast = keys.get("torch_autocast") or {}
    if autocast.get("enabled"):
        return str(autocast.get("dtype") or "bfloat16").removeprefix("torch.")
    return next(
        (dtype for dtype, flag in SIXTEEN_BIT.items() if (keys.get(flag) or {}).get("enabled") is True), None
    )


def untested_optimizer(_: Settings) -> Keys:
    """Optimizers that DeepSpeed did not make are the program's."""
    return {"zero_allow_untested_optimizer": True}
