"""The ways of training on two processes that are compared, as levels and as accelerate is told them.

Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rankwise.optimizer.domain import Candidate, Level
from rankwise.optimizer.estimates.shard_plan import ShardPlan, plan_of
from rankwise.optimizer.trainers.writing import deepspeed_config as as_trials_do

RANKS = 2

PRECISIONS: Mapping[str, Level] = {
    "float32": Level(),
    "bfloat16": Level(weight_dtype="float32", compute_dtype="bfloat16", adapter_dtype="float32"),
}
"""Computing in float32, and mixed precision with float32 weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way of training on several processes."""

    name: str
    settings: Mapping[str, Any]
    """Fields of :class:`Level`."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """DeepSpeed's, by the names of :class:`ShardPlan`, where they are not its defaults."""

    def level(self, precision: str) -> Level:
        """With everything that divides, and nothing that saves memory otherwise."""
        return replace(PRECISIONS[precision], processes=RANKS, **self.settings)

    def plan(self, candidate: Candidate) -> ShardPlan:
        """How the candidate's level divides the model, with these sizes."""
        return replace(plan_of(candidate) or ShardPlan(), **self.sizes)


SIZES = {
    "reduce_bucket_elements": "reduce_bucket_size",
    "prefetch_elements": "stage3_prefetch_bucket_size",
    "persistent_elements": "stage3_param_persistence_threshold",
    "live_elements": "stage3_max_live_parameters",
    "reuse_elements": "stage3_max_reuse_distance",
    "sub_group_elements": "sub_group_size",
}
"""Field of :class:`ShardPlan` → DeepSpeed's key."""

SMALL = {
    "reduce_bucket_elements": 300_000,
    "prefetch_elements": 200_000,
    "persistent_elements": 1_000,
    "live_elements": 2_000_000,
    "reuse_elements": 0,
}
"""To a small model what the defaults are to a large one: weights do not all stay gathered."""


SCHEMES = (
    Scheme(name="DDP", settings={}),
    Scheme(name="ZeRO-1", settings={"zero_stage": 1}),
    Scheme(name="ZeRO-2", settings={"zero_stage": 2}),
    Scheme(name="ZeRO-3", settings={"zero_stage": 3}),
    Scheme(name="ZeRO-2, optimizer offloaded", settings={"zero_stage": 2, "offload": "optimizer"}),
    Scheme(name="ZeRO-3, optimizer offloaded", settings={"zero_stage": 3, "offload": "optimizer"}),
    Scheme(name="ZeRO-3, all offloaded", settings={"zero_stage": 3, "offload": "all"}),
    Scheme(name="ZeRO-2, small buckets", settings={"zero_stage": 2}, sizes=SMALL),
    Scheme(name="ZeRO-3, small buckets", settings={"zero_stage": 3}, sizes=SMALL),
    Scheme(name="FSDP1", settings={"fsdp": 1}),
    Scheme(name="FSDP2", settings={"fsdp": 2}),
)


def deepspeed_config(candidate: Candidate, scheme: Scheme) -> dict[str, Any] | None:
    """What trials give DeepSpeed, with these sizes; None where it does not train."""
    config = as_trials_do(candidate)
    if config is not None:
        config["zero_optimization"] |= {SIZES[name]: size for name, size in scheme.sizes.items()}
    return config


def fsdp_settings(level: Level) -> dict[str, Any]:
    """What ``FullyShardedDataParallelPlugin`` is told: everything is divided, a layer at a time."""
    is_first = level.fsdp == 1
    return {
        "fsdp_version": level.fsdp,
        "reshard_after_forward": "FULL_SHARD" if is_first else True,
        "auto_wrap_policy": "transformer_based_wrap",
        "use_orig_params": True if is_first else None,
        "cpu_offload": level.offload == "all",
    }
