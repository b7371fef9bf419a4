"""What a dry run is asked and what it answers, free of torch: between the job and whoever asks it.

Knows nothing of particular devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..domain import Candidate
from .communication import NO_TRAFFIC, Traffic
from .need import Need, need_of, reserved_bytes
from .shard_plan import ShardPlan
from .sharding import sharded
from .tape import Tape, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a need is worked out for, beside the candidate."""

    workspaces: tuple[int, ...] = ()
    expandable_segments: bool = False
    limit_bytes: int | None = None
    """What the allocator may take; None asks for no largest batch."""
    plan: ShardPlan | None = None
    """How the candidate's level divides the model (``plan_of``)."""

    def need(self, tape: Tape) -> Need:
        """Of one rank."""
        return need_of(
            self._own(tape),
            workspaces=self.workspaces,
            loads_at_once=self.plan is None,
            expandable_segments=self.expandable_segments,
        )

    def reserved_bytes(self, tape: Tape) -> int:
        """Of one rank."""
        return reserved_bytes(
            self._own(tape),
            workspaces=self.workspaces,
            loads_at_once=self.plan is None,
            expandable_segments=self.expandable_segments,
        )

    def _own(self, tape: Tape) -> Tape:
        return tape if self.plan is None else sharded(tape, self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is known of a candidate after its dry run."""

    candidate: Candidate
    need: Need
    work: Work
    """Of one optimizer step, all its micro-batches."""
    host_bytes: int = 0
    """That offloading takes of the host's memory for each rank."""
    traffic: Traffic = NO_TRAFFIC
    max_micro_batch: int | None
    """None without a limit, where not even one row is within it, and where it was not looked for."""
    max_length: int | None
    """Tokens a row at the candidate's micro-batch; None as for the batch."""
    seconds: float
    """That this took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPrediction:
    """What is known of a trial after its dry run."""

    need: Need
    work: Work
    """Of one optimizer step with the heaviest batch."""
    host_bytes: int = 0
    """That offloading takes of the host's memory for each rank."""
    traffic: Traffic = NO_TRAFFIC
    step_tokens: float
    """Tokens with content that such a step of one rank does, at the padding that the data have."""
    seconds: float
    """That this took."""

    def taken_bytes(self, *, on_cuda: bool) -> int:
        """Of the memory that tensors are in, for each rank: on a CPU what is offloaded stays there."""
        return self.need.allocated_bytes + (0 if on_cuda else self.host_bytes)
