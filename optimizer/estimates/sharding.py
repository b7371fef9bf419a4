"""From the tape of one GPU to that of one rank of several, by the rules of the libraries that share it out.

DDP, DeepSpeed's ZeRO 1 to 3 and FSDP's full shard as accelerate and transformers set them up: blocks that are
divided become smaller, and what the library adds (buckets, gathered layers, float32 copies) is allocated and
freed where it does so. Knows nothing of torch, of how a tape is recorded, and of NCCL's own buffers
(``overheads.py``).
"""

from __future__ import annotations

from itertools import groupby

from .fsdp import Fsdp
from .ranks import MASTER_BYTES, Ddp, Model, Rank
from .shard_plan import Offload, Scheme, ShardPlan
from .tape import Phase, Tape
from .zero import Zero, Zero3

_SCHEMES: dict[Scheme, type[Rank]] = {
    Scheme.DDP: Ddp,
    Scheme.ZERO_1: Zero,
    Scheme.ZERO_2: Zero,
    Scheme.ZERO_3: Zero3,
    Scheme.FSDP: Fsdp,
}


def sharded(tape: Tape, plan: ShardPlan) -> Tape:
    """The tape of the rank that holds most.

    A single rank of DDP or FSDP is the tape itself, as accelerate wraps nothing then; DeepSpeed makes its
    buckets and copies for one rank too.

    Args:
        tape: of one GPU, at the micro-batch of a rank, stretched or not.
        plan: see there.
    """
    if plan.scheme is Scheme.NONE or (plan.ranks == 1 and plan.scheme in (Scheme.DDP, Scheme.FSDP)):
        return tape
    return _SCHEMES[plan.scheme](tape, plan).result()


def host_bytes(tape: Tape, plan: ShardPlan) -> int:
    """What offload puts into the host's memory for each rank, most of it page-locked.

    For stages of DeepSpeed float32 masters and gradients, the optimizer's state, and in the dtype that is
    computed in a copy of the weights (stages 1 and 2: ``param_buffer_of_bit16_for_cpu_offload_groups``) or
    the gradients (stage 3: ``grad_partitions_flat_buffer``). For FSDP shards, their gradients and the state.
    """
    if plan.offload is Offload.NONE:
        return 0
    model = Model(tape, plan)
    if plan.scheme is Scheme.FSDP:
        shards = sum(model.shard_bytes(size, plan.master_item_bytes) for size in model.trained_sizes)
        frozen = sum(model.part(model.frozen_shard_bytes(size)) for size in model.frozen_sizes)
        return 2 * shards + frozen + model.state_bytes
    share = model.stage_3_share if plan.scheme is Scheme.ZERO_3 else model.flat_share
    total = share * (2 * MASTER_BYTES + plan.trained_item_bytes) + model.state_bytes
    if plan.scheme is not Scheme.ZERO_3:
        total += share * plan.trained_item_bytes * accumulates(tape)  # accumulated_grads_in_cpu
        total += max(model.trained_sizes, default=0)  # temp_grad_buffer_for_cpu_offload
    if plan.offload is Offload.ALL:
        total += share * plan.trained_item_bytes + sum(map(model.part, model.frozen_sizes))
    return total


def accumulates(tape: Tape) -> bool:
    """Whether a step has several micro-batches."""
    phases = [phase for phase, _ in groupby(tape.events, key=lambda event: event.phase)]
    return phases.count(Phase.BACKWARD) > 1


def unfilled_bytes(plan: ShardPlan | None, trained_parameters: int) -> int:
    """Of a rank's buckets what no gradient fills: allocated, but on a CPU no page of it is ever touched.

    DeepSpeed allocates whole buckets, however small the model: 1 GB of 16-bit numbers unless told otherwise.

    Args:
        trained_parameters: of the whole model.
    """
    if plan is None or plan.scheme not in (Scheme.ZERO_1, Scheme.ZERO_2, Scheme.ZERO_3):
        return 0
    buckets = 2 if plan.overlap_comm and plan.scheme is not Scheme.ZERO_3 else 1
    empty = max(0, plan.reduce_bucket_elements - trained_parameters)
    return buckets * empty * plan.trained_item_bytes
