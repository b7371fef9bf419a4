"""How a training is spread over processes: accelerate set up for it, and models that are divided.

Imports nothing of rankwise but :mod:`.build` and :mod:`.team`, which are free of it too: it is part of what
the exported programs are made of.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, DistributedDataParallelKwargs
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from transformers.integrations import unset_hf_deepspeed_config

from .build import InvalidTrial, autocast_name
from .team import own_rank, world_size

FSDP_WRAPPER = "_fsdp_wrapped_module."
"""What FSDP 1 puts into the names of parameters."""


def make_accelerator(
    candidate: Mapping[str, Any], *, deepspeed: Mapping[str, Any] | None, on_cpu: bool
) -> Accelerator:
    """accelerate, told how the candidate's level spreads the training.

    Args:
        candidate: in its JSON form.
        deepspeed: DeepSpeed's configuration, where the level has a ZeRO stage.
        on_cpu: no GPU is to be used.

    Raises:
        InvalidTrial: the program was started as another number of processes than the level has.
    """
    level = candidate["level"]
    options: dict[str, Any] = {"cpu": on_cpu, "mixed_precision": autocast_name(level)}
    if deepspeed is not None:
        # What accelerate's launcher read in its own file: beside a configuration of ours it would be refused.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
        plugin = DeepSpeedPlugin(hf_ds_config=copy.deepcopy(dict(deepspeed)), zero3_init_flag=False)
        # accelerate (1.15) leaves DeepSpeed out where it is told to use the CPU; it finds that by itself.
        options |= {"deepspeed_plugin": plugin, "cpu": False}
        options["gradient_accumulation_steps"] = deepspeed["gradient_accumulation_steps"]
    elif level["fsdp"]:
        options["fsdp_plugin"] = fsdp_plugin(level)
    elif level["processes"] > 1:
        # The model's own weights are trained: those that no loss reaches (a pooler's) have no gradient.
        may_idle = candidate["adapter"]["method"] == "full" and not level["gradient_checkpointing"]
        options["kwargs_handlers"] = [DistributedDataParallelKwargs(find_unused_parameters=may_idle)]
    accelerator = Accelerator(**options)
    # transformers (5.23) would divide the model while it loads it, which draws other random numbers for a new
    # head than one process does, and knows no adapter. DeepSpeed divides what it is given all the same.
    unset_hf_deepspeed_config()
    if world_size() != level["processes"]:  # accelerate's own count is 1 for DeepSpeed on a CPU
        raise InvalidTrial(
            f"{world_size()} process(es) were started for a training of {level['processes']}: start them by "
            "accelerate launch --config_file accelerate.yaml, on a CPU without DeepSpeed by "
            f"torchrun --nproc_per_node {level['processes']}"
        )
    return accelerator


def fsdp_plugin(level: Mapping[str, Any]) -> FullyShardedDataParallelPlugin:
    """Everything is divided, block by block as transformers names them."""
    is_first = level["fsdp"] == 1
    return FullyShardedDataParallelPlugin(
        fsdp_version=level["fsdp"],
        reshard_after_forward="FULL_SHARD" if is_first else True,
        auto_wrap_policy="transformer_based_wrap",
        cpu_offload=level["offload"] == "all",
        # Frozen and trained parameters share a unit, and the optimizer is made before they are divided.
        use_orig_params=True if is_first else None,
    )


def is_spread(level: Mapping[str, Any]) -> bool:
    """Several processes train, or DeepSpeed does, which wants to be started as several are."""
    return bool(level["processes"] > 1 or level["zero_stage"])


def gathers_weights(level: Mapping[str, Any]) -> bool:
    """Each process holds a part of every weight, and gathers the rest when it is needed."""
    return bool(level["zero_stage"] == 3 or level["fsdp"])


def build_device(level: Mapping[str, Any], device: torch.device) -> torch.device:
    """Where the model is built: what is to be divided need not fit a device whole."""
    return torch.device("cpu") if gathers_weights(level) else device


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside of what accelerate and DeepSpeed put around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    found: torch.optim.Optimizer = optimizer
    return found


def named_parts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter, torch.Tensor]]:
    """Each parameter by the name that it had before, with this process's part of it, which may be empty."""
    for name, parameter in model.named_parameters():
        yield name.replace(FSDP_WRAPPER, ""), parameter, own_part(parameter)


def own_part(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter."""
    if hasattr(parameter, "ds_tensor"):
        part: torch.Tensor = parameter.ds_tensor
        return part
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()


def whole_parameters(model: torch.nn.Module, *, trained_only: bool) -> dict[str, torch.Tensor] | None:
    """The parameters put together again on the CPU, by the names of the model before it was divided.

    All processes have to ask; None in all but the first.

    Args:
        model: as it was prepared, without DeepSpeed's or DDP's wrapper around it.
        trained_only: leave the frozen ones out.
    """
    wanted = [
        (name.replace(FSDP_WRAPPER, ""), parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not trained_only
    ]
    found = {
        name: whole.to("cpu", copy=True) for name, whole in _put_together(model, wanted) if own_rank() == 0
    }
    return found if own_rank() == 0 else None


def _put_together(
    model: torch.nn.Module, wanted: Iterable[tuple[str, torch.nn.Parameter]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """One parameter after the other, so that no more than one is whole at a time; FSDP 1 makes all whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            yield from ((name, parameter.detach()) for name, parameter in wanted)
        return
    for name, parameter in wanted:
        if hasattr(parameter, "ds_id"):
            from deepspeed import zero

            with zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        else:
            yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
