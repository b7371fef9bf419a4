"""What is estimated of a rank, and what theory says of it.

Knows nothing of what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rank_parts.schemes import RANKS, Scheme
from rankwise.optimizer.domain import Candidate
from rankwise.optimizer.estimates.prediction import Terms
from rankwise.optimizer.estimates.sharding import host_bytes, sharded, unfilled_bytes
from rankwise.optimizer.estimates.tape import Phase, peaks_of
from rankwise.optimizer.sizes import BYTES_PER_ELEMENT, estimated_trainable
from rankwise.probes.profiles import ModelProfile
from rankwise.runners.dry_run import Batch
from rankwise.runners.dry_runner import DryRunner, Sizes

PHASES = {"forward": Phase.FORWARD, "backward": Phase.BACKWARD, "optimizer": Phase.OPTIMIZER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An estimate of one rank, in bytes; buckets that nothing fills are left out."""

    peaks: Mapping[str, int]
    """By part of a step, on the device and offloaded together: on a CPU both are in one memory."""
    host_bytes: int
    unfilled_bytes: int


def estimate(runner: DryRunner, candidate: Candidate, scheme: Scheme, batch: Batch) -> Told:
    """What a rank of this scheme needs at this micro-batch."""
    plan = scheme.plan(candidate)
    tape = Sizes(runner, candidate, batch, Terms()).deep(batch)
    peaks, offloaded = peaks_of(sharded(tape, plan)), host_bytes(tape, plan)
    empty = unfilled_bytes(plan, estimated_trainable(candidate, runner.model))
    return Told(
        peaks={
            part: size - empty if (size := peaks.by_phase[phase] + offloaded) > empty else size
            for part, phase in PHASES.items()
        },
        host_bytes=offloaded,
        unfilled_bytes=empty,
    )


def theory(candidate: Candidate, model: ModelProfile) -> dict[str, int]:
    """Bytes of a rank as Rajbhandari et al. (2020) count them, float32 masters included.

    Frozen weights have no gradients and states; DDP and FSDP keep the trained weights themselves in float32.
    """
    level = candidate.level
    trained = estimated_trainable(candidate, model)
    total = model.parameters + (0 if candidate.adapter.rank is None else trained)
    divides = {0: 0, 1: 1, 2: 2, 3: 3}[level.zero_stage] if level.zero_stage else 3 if level.fsdp else 0
    item = BYTES_PER_ELEMENT[level.compute_dtype if level.zero_stage else level.weight_dtype]
    parts = [RANKS if divides >= least else 1 for least in (3, 2, 1)]
    masters = 4 if level.zero_stage else 0
    return {
        "parameters": total * item // parts[0],
        "gradients": trained * item // parts[1],
        "states": trained * (8 + masters) // parts[2],
    }
