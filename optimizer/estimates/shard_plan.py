"""How a tape is to be shared out among ranks: the scheme, what is offloaded, and what a tape does not say.

Files named without a path are those of ``deepspeed/runtime/zero`` (0.19). Knows nothing of what follows from
a plan (``sharding.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from ...errors import InputError
from ..domain import Candidate, Level, Method, Quantization
from ..sizes import BYTES_PER_ELEMENT

MIB = 2**20


class Scheme(StrEnum):
    """How ranks share a model."""

    NONE = "none"
    DDP = "ddp"
    ZERO_1 = "zero-1"
    ZERO_2 = "zero-2"
    ZERO_3 = "zero-3"
    FSDP = "fsdp"


class Offload(StrEnum):
    """What lives on the host, as in ``Level.offload``."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    """Optimizer state, float32 masters and their gradients; the optimizer runs there."""
    ALL = "all"
    """The divided parameters too."""


_OFFLOADS = {
    # offload_param is "valid only with stage 3" (config.py); FSDP's CPUOffloadPolicy moves all or nothing.
    Scheme.ZERO_1: {Offload.OPTIMIZER},
    Scheme.ZERO_2: {Offload.OPTIMIZER},
    Scheme.ZERO_3: {Offload.OPTIMIZER, Offload.ALL},
    Scheme.FSDP: {Offload.ALL},
}


_WITH_VECTORS = {Method.FULL, Method.LAST_BLOCKS, Method.HEAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """How a tape is shared out, and what it does not say itself. Sizes of buckets are DeepSpeed's defaults.

    Both libraries cast weights themselves, so that the tape should be one whose weights are in the dtype that
    is computed in, without autocast's copies.

    Raises:
        ValueError: a number is not positive, or the scheme has no such offload.
    """

    ranks: int = 1
    scheme: Scheme = Scheme.NONE
    offload: Offload = Offload.NONE
    trained_item_bytes: int = 2
    """Of one trained number on the tape."""
    frozen_item_bytes: int = 2
    """Of one frozen number on the tape; of no account for ``keeps_frozen``."""
    master_item_bytes: int = 4
    """Of one trained number as FSDP keeps it. accelerate makes it float32 with mixed precision
    (``fsdp2_prepare_model``) and leaves it alone without."""
    frozen_shard_item_bytes: int | None = None
    """Of one frozen number as FSDP keeps it, which gathers what is computed in; None: as on the tape."""
    state_follows: bool = True
    """Optimizer state has the dtype of the weights, which an 8-bit optimizer's has not."""
    keeps_frozen: bool = False
    """Frozen weights of layers are not divided: FSDP2 leaves out 4-bit ones whose ``quant_storage`` is no
    floating dtype (``fsdp2_prepare_model``), and stages of DeepSpeed cannot gather them."""
    gathers_twice: bool = True
    """FSDP2 copies out of what it gathered; FSDP1 (transformers' default until 5) gathers in place, and keeps
    embeddings and head together."""
    fetches_ahead: bool = True
    """A backward pass of FSDP1 gathers the next unit while one is computed (``BACKWARD_PRE``, which files of
    ``accelerate config`` have; accelerate by itself leaves it out). FSDP2 always does."""
    recomputes_units: bool = False
    """Re-entrant checkpointing is around FSDP1's units, as transformers has it, so that a backward pass runs
    them again with their hooks (:class:`Fsdp` says what follows). Of no account for FSDP2."""
    mixes_units: bool = False
    """FSDP1's units hold frozen weights beside trained ones (``transformer_based_wrap``): they are one flat
    parameter, whose gradient is as large as both. Of no account for FSDP2."""
    optimizer_groups: int = 1
    """Of parameters that the optimizer treats alike, such as those with weight decay. DeepSpeed reduces the
    gradients of all into one buffer, which is there until the last group is updated."""
    ddp_bucket_bytes: int = 25 * MIB
    """``DistributedDataParallel(bucket_cap_mb=25)``."""
    reduce_bucket_elements: int = 500_000_000
    """``reduce_bucket_size``; transformers puts hidden_size ** 2 for "auto" (integrations/deepspeed.py)."""
    overlap_comm: bool = False
    """The default below stage 3 (config.py). It doubles the bucket of stages 1 and 2."""
    prefetch_elements: int = 50_000_000
    """``stage3_prefetch_bucket_size``; 0.9 * hidden_size ** 2 for "auto"."""
    persistent_elements: int = 100_000
    """``stage3_param_persistence_threshold``; 10 * hidden_size for "auto"."""
    live_elements: int = 1_000_000_000
    """``stage3_max_live_parameters``."""
    reuse_elements: int = 1_000_000_000
    """``stage3_max_reuse_distance``: what is used again within so many parameters is not released."""
    sub_group_elements: int = 1_000_000_000
    """``sub_group_size``: so much of a rank's share is optimized at once by stage 3."""

    def __post_init__(self) -> None:
        for name in ("ranks", "trained_item_bytes", "frozen_item_bytes", "master_item_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        for name in ("reduce_bucket_elements", "sub_group_elements", "ddp_bucket_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        allowed = _OFFLOADS.get(self.scheme, set())
        if self.offload is not Offload.NONE and self.offload not in allowed:
            known = ", ".join(sorted(allowed)) or "nothing"
            raise ValueError(f"{self.scheme} cannot offload {self.offload!r}: it can offload {known}")


def plan_of(candidate: Candidate) -> ShardPlan | None:
    """How a level divides the model, for a tape of :func:`as_run`; None where one process has all to itself.

    Raises:
        InputError: the level offloads what its scheme cannot.
    """
    level = candidate.level
    if not level.sharding:
        return None
    run = as_run(level)
    trained = BYTES_PER_ELEMENT[run.adapter_dtype]
    try:
        return ShardPlan(
            ranks=level.processes,
            scheme=_scheme_of(level),
            offload=Offload(level.offload),
            trained_item_bytes=trained,
            frozen_item_bytes=BYTES_PER_ELEMENT[run.weight_dtype],
            master_item_bytes=BYTES_PER_ELEMENT["float32"] if level.amp else trained,
            frozen_shard_item_bytes=BYTES_PER_ELEMENT[level.weight_dtype],
            state_follows=not level.optimizer.endswith("_8bit"),
            keeps_frozen=level.quantization is not Quantization.NONE,
            gathers_twice=level.fsdp != 1,
            fetches_ahead=level.fsdp != 1,
            mixes_units=level.fsdp == 1,
            # Norms and biases are spared from weight decay; most adapters train neither.
            optimizer_groups=2 if candidate.adapter.method in _WITH_VECTORS else 1,
        )
    except ValueError as error:
        raise InputError(str(error), next_step="choose another ZeRO stage, FSDP or offload") from error


def as_run(level: Level) -> Level:
    """The level as it is while a rank computes: a library that divides weights casts every one of them.

    DeepSpeed does so at the start (``module.bfloat16()``), FSDP whenever it gathers.
    """
    if not level.zero_stage and not level.fsdp:
        return level
    return replace(level, weight_dtype=level.compute_dtype, adapter_dtype=level.compute_dtype)


def has_autocast(level: Level) -> bool:
    """Whether ranks compute under autocast: DeepSpeed's do not, FSDP's do as a single process does."""
    return level.amp and not level.zero_stage


def _scheme_of(level: Level) -> Scheme:
    if level.fsdp:
        return Scheme.FSDP
    return Scheme(f"zero-{level.zero_stage}") if level.zero_stage else Scheme.DDP
