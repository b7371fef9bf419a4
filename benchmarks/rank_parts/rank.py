"""What one of two processes does: build, divide, train a few steps, and say what its tensors took.

Runs in a fork of a process that has everything imported.
"""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rank_parts.counting import Counter
from rank_parts.schemes import RANKS, fsdp_settings
from rankwise.optimizer.domain import Level
from rankwise.runners.build import autocast_name, build_model, make_optimizer
from rankwise.runners.forward import batch_loss, run_model

STEP = ("forward", "backward", "optimizer")
TIMEOUT = datetime.timedelta(seconds=120)


def run(
    rank: int, port: int, listening: int, spec: Mapping[str, Any], level: Level, library: Path
) -> dict[str, Any]:
    """Train, and return bytes.

    Args:
        port, listening: where ranks meet, and rank 0's socket for it.
        spec: ``model``, ``task``, ``candidate``, ``adapter``, ``rows``, ``length``, ``accumulation``,
            ``steps``, ``deepspeed``, and ``watched``, the part whose peak is told block by block.
        level: the candidate's.
        library: that counts.

    Returns:
        ``peaks`` by part of a step, ``held`` before the optimizer updates by what it is, and ``blocks``.
    """
    torch.set_num_threads(1)
    join(rank, port, listening)
    counter = Counter(library, watched=spec["watched"])
    steps, held = train(rank, spec, level, counter)
    dist.barrier()
    # The first step makes states; then what gloo's threads give back late makes steps differ.
    peaks = {part: statistics.median_low([step[part] for step in steps[1:]]) for part in STEP}
    return {"peaks": peaks, "held": held, "blocks": counter.blocks()}


def join(rank: int, port: int, listening: int) -> None:
    """Meet the other ranks over gloo."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        LOCAL_WORLD_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    store = dist.TCPStore(
        "127.0.0.1",
        port,
        RANKS,
        rank == 0,
        timeout=TIMEOUT,
        master_listen_fd=listening if rank == 0 else None,
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=TIMEOUT)


def train(
    rank: int, spec: Mapping[str, Any], level: Level, counter: Counter
) -> tuple[list[dict[str, int]], dict[str, int]]:
    """A few steps: peaks of each, and what was held before the last update, by what it is."""
    counter.begins("build")
    # Before accelerate: while it has a plugin of stage 3, transformers divides whatever it makes.
    model: Any = build_model(
        spec["model"],
        task=spec["task"],
        candidate=spec["candidate"],
        adapter_config=spec["adapter"],
        pad_id=0,
        seed=0,
        device=torch.device("cpu"),
        has_weights=False,
    )
    vocabulary = model.config.vocab_size
    optimizer: Any = make_optimizer(model, spec["candidate"])
    accelerator = accelerator_for(level, spec)
    model, optimizer = accelerator.prepare(model, optimizer)
    held: dict[str, int] = {}

    def update() -> None:
        held.update(held_by(model, optimizer), all=counter.held_bytes)
        counter.begins("optimizer")

    if level.zero_stage:
        before_step(model, update)
    torch.manual_seed(1)
    shape = (RANKS, spec["accumulation"], spec["rows"], spec["length"])
    tokens = torch.randint(0, vocabulary, shape)[rank].clone()
    steps = []
    for _ in range(spec["steps"]):
        counter.begins("forward")
        counter.new_peaks()
        total = torch.zeros(())
        for number in range(spec["accumulation"]):
            is_last = number == spec["accumulation"] - 1
            accelerator.gradient_state._set_sync_gradients(is_last)
            counter.begins("forward")
            inputs = {"input_ids": tokens[number], "labels": tokens[number]}
            loss = batch_loss(run_model(model, inputs, call=model), inputs)
            weighted = loss * 1.0
            counter.begins("backward")
            with nullcontext() if is_last or level.zero_stage else accelerator.no_sync(model):
                accelerator.backward(weighted)
            total += weighted.detach()
        if not level.zero_stage:
            update()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        del inputs, loss, weighted
        counter.begins("end")
        steps.append(counter.new_peaks())
    return steps, held


def before_step(engine: Any, call: Callable[[], None]) -> None:
    """accelerate (1.15) has DeepSpeed's engine update within the last backward pass of a step."""
    step = engine.step

    def stepped(*args: Any, **named: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            call()
        return step(*args, **named)

    engine.step = stepped


def accelerator_for(level: Level, spec: Mapping[str, Any]) -> Any:
    """accelerate as a launcher would have set it up."""
    from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin

    named: dict[str, Any] = {}
    if level.zero_stage:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        named["deepspeed_plugin"] = DeepSpeedPlugin(hf_ds_config=spec["deepspeed"], zero3_init_flag=False)
    elif level.fsdp:
        stay_on_the_cpu()
        named["fsdp_plugin"] = FullyShardedDataParallelPlugin(**fsdp_settings(level))
    if not level.zero_stage:
        named["mixed_precision"] = autocast_name(
            {
                "weight_dtype": level.weight_dtype,
                "compute_dtype": level.compute_dtype,
                "adapter_dtype": level.adapter_dtype,
            }
        )
    return Accelerator(cpu=not (level.zero_stage or level.fsdp), **named)


def stay_on_the_cpu() -> None:
    """accelerate (1.15) takes FSDP for something that GPUs do; torch's own runs on gloo."""
    from accelerate.state import DistributedType, PartialState

    def backend(*_: Any) -> tuple[str, Any]:
        return "gloo", DistributedType.MULTI_GPU

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend = backend
    PartialState.set_device = set_device


def held_by(model: Any, optimizer: Any) -> dict[str, int]:
    """Bytes of parameters, gradients and the optimizer's states, as this rank holds them."""
    inner = optimizer.optimizer
    zero = inner if hasattr(inner, "zero_grad") and hasattr(inner, "loss_scaler") else None
    base = zero.optimizer if zero is not None else inner
    parameters = [*model.parameters(), *(p.ds_tensor for p in model.parameters() if hasattr(p, "ds_tensor"))]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    states = [v for state in base.state.values() for v in state.values() if torch.is_tensor(v)]
    if zero is not None:
        masters = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
        states += masters
        gradients += [m.grad for m in masters if m.grad is not None]
        for kept in zero.averaged_gradients.values():
            gradients += [g for g in kept or () if torch.is_tensor(g)]
        if hasattr(zero, "grad_partitions_flat_buffer"):
            gradients.append(zero.grad_partitions_flat_buffer)
    seen: set[int] = set()
    return {
        name: sum(sizes(tensors, seen))
        for name, tensors in (("parameters", parameters), ("states", states), ("gradients", gradients))
    }


def sizes(tensors: Iterable[torch.Tensor], seen: set[int]) -> Iterator[int]:
    """Of each storage that was not seen yet."""
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        storage = local.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage.nbytes()
