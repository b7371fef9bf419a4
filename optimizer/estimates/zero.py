"""DeepSpeed's ZeRO 1 to 3 as transformers sets them up.

"stage_1_and_2.py" and the like are files of ``deepspeed/runtime/zero`` (0.19).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from .gathering import FIRST, LAST, Gathering, Unit
from .ranks import MASTER_BYTES, Rank, divided
from .shard_plan import Scheme, ShardPlan
from .tape import Event, Kind, Phase, Place, Tape


class Zero(Rank):
    """Stages 1 and 2 (stage_1_and_2.py), and what stage 3 has in common with them."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.share = self.model.flat_share
        self.item = plan.trained_item_bytes
        self.filled = 0
        self.buckets: list[int | None] = []
        self.kept: int | None = None
        self.fresh: int | None = None
        self.optimized: list[int | None] = []
        self.ready: list[int | None] = []
        self.whole: list[int] = []
        self.numels: dict[Place | None, list[int]] = defaultdict(list)
        for event in self.model.trained.values():
            self.numels[event.place].append(self.model.numel(event))

    @property
    def frees_gradients(self) -> bool:
        """Each gradient leaves as soon as it is there; stage 1 keeps them to the end of the step."""
        return self.plan.scheme is not Scheme.ZERO_1

    def built(self) -> None:
        if not self.is_offloaded:
            # single_partition_of_fp32_groups
            self.allocate(self.share * MASTER_BYTES, Kind.OPTIMIZER_STATE)
        elif self.numels:
            # temp_grad_buffer_for_gpu_offload
            self.allocate(max(self.model.trained_numels, default=0) * self.item, Kind.GRADIENTS)

    def begins(self) -> None:
        if self.phase is Phase.BACKWARD:
            self._make_buckets()
        elif self.phase is Phase.OPTIMIZER and not self.is_offloaded:
            self._flatten()

    def ends(self, following: Phase | None) -> None:
        if self.phase is Phase.BACKWARD:
            if self.frees_gradients:
                self._fill(self.numels[None])
                self._reduce()
            elif following is Phase.OPTIMIZER:
                self._reduce_all()
            self._merge()
            for bucket in self.buckets:
                self.free(bucket)
        elif self.phase is Phase.OPTIMIZER:
            for block in self.optimized:
                self.free(block)
            self.optimized = []

    def allocates(self, event: Event) -> None:
        self._copy_ready()
        super().allocates(event)

    def gradient(self, event: Event) -> None:
        if self.frees_gradients:
            # Copied into the bucket, which is the gradient from then on.
            self.absent.add(event.block)
            self.ready.append(self.allocate(event.size_bytes, Kind.GRADIENTS))
        else:
            self.keep(event, event.size_bytes)
            self.whole.append(event.block)

    def leaves(self, place: Place | None) -> None:
        self._copy_ready()
        if self.phase is Phase.BACKWARD and self.frees_gradients and place is not None:
            self._fill(self.numels[place])

    def _copy_ready(self) -> None:
        for block in self.ready:
            self.free(block)
        self.ready = []

    def _make_buckets(self) -> None:
        """``setup_buckets``: whole buckets, however small the model."""
        size = self.plan.reduce_bucket_elements * self.item
        self.buckets = [self.allocate(size, Kind.GRADIENTS) for _ in range(1 + self.plan.overlap_comm)]

    def _fill(self, numels: Sequence[int]) -> None:
        for numel in reversed(numels):
            if self.filled + numel > self.plan.reduce_bucket_elements:
                self._reduce()
            self.filled += numel

    def _reduce(self) -> None:
        """Flatten a bucket into a copy, and keep the rank's part of it (``copy_grads_in_partition``)."""
        if not self.filled:
            return
        copy = self.allocate(self.filled * self.item, Kind.TEMPORARIES)
        self._partition()
        self.free(copy)
        self.filled = 0

    def _partition(self) -> None:
        """``grads_in_partition``: room for all of the rank's part."""
        if self.fresh is None and not self.is_offloaded:
            self.fresh = self.allocate(self.share * self.item, Kind.GRADIENTS)

    def _reduce_all(self) -> None:
        """Stage 1: at the end of a step's last backward pass."""
        self._fill(self.model.trained_numels)
        self._reduce()
        for block in self.whole:
            self.free(block)
        self.absent.update(self.whole)

    def _merge(self) -> None:
        """Add a further micro-batch's gradients to those that are kept."""
        if self.kept is None:
            self.kept = self.fresh
        else:
            self.free(self.fresh)
        self.fresh = None

    def _flatten(self) -> None:
        """The rank's gradients in one piece, then as float32; what they were made from is freed."""
        size = self._optimized_elements()
        flat = self.allocate(size * self.item, Kind.GRADIENTS)
        if self.item != MASTER_BYTES:
            wide = self.allocate(size * MASTER_BYTES, Kind.GRADIENTS)
            self.free(flat)
            flat = wide
        self.free(self.kept)
        self.kept = None
        self.optimized = [flat]

    def _optimized_elements(self) -> int:
        return self.share


class Zero3(Gathering, Zero):
    """Stage 3 (stage3.py, partition_parameters.py, partitioned_param_coordinator.py).

    Modules are fetched one by one there, layer by layer here: in a backward pass it comes to the same, as
    nothing that is used again within ``reuse_elements`` is released.
    """

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.share = self.model.stage_3_share
        self.prefetched: int | None = None
        self.soon = set(self._used_again_soon())

    @property
    def staying(self) -> Collection[Unit]:
        return self.soon

    def is_whole(self, event: Event) -> bool:
        return self.model.numel(event) <= self.plan.persistent_elements

    def built(self) -> None:
        for event in self.model.divided.values():
            if self.is_whole(event):
                self.allocate(self.whole_bytes(event), self.tape.kinds[event.block])
        self.allocate(self.plan.reduce_bucket_elements * self.item, Kind.GRADIENTS)
        if not self.is_offloaded:
            self.allocate(self.share * self.item, Kind.GRADIENTS)  # grad_partitions_flat_buffer
            self.allocate(self.share * MASTER_BYTES, Kind.OPTIMIZER_STATE)

    def release_outside(self) -> None:
        self.release(LAST)
        if self.phase is Phase.EVALUATION or FIRST not in self.soon:
            self.release(FIRST)

    def use(self, unit: Unit) -> None:
        if unit not in self.gathered:
            self.gather(unit)
            # Gathered into one buffer, from which each parameter is put together (AllGatherCoalescedHandle).
            numels = [self.model.numel(event) for event in self.units[unit]]
            at_once = min(sum(numels), max(self.plan.prefetch_elements, max(numels, default=0)))
            self.briefly(at_once * self._item_bytes(unit))
        following = self.next_layer(unit)
        if following is not None and following not in self.gathered:
            room = self.plan.live_elements - sum(map(self._numel, self.gathered))
            ahead = max(0, min(self.plan.prefetch_elements, self._numel(following), room))
            self.prefetched = self.allocate(ahead * self._item_bytes(following), Kind.BASE_WEIGHTS)

    def leaves(self, place: Place | None) -> None:
        self.free(self.prefetched)
        self.prefetched = None
        super().leaves(place)

    def optimizer_bytes(self, event: Event) -> int:
        part = super().optimizer_bytes(event)
        is_state = self.tape.kinds[event.block] is Kind.OPTIMIZER_STATE
        return part if is_state else divided(part, self._sub_groups)

    @property
    def _sub_groups(self) -> int:
        return max(1, divided(self.share, self.plan.sub_group_elements))

    def _optimized_elements(self) -> int:
        return divided(self.share, self._sub_groups)

    def _make_buckets(self) -> None:
        """One there was from the start."""

    def _partition(self) -> None:
        """One there was from the start."""

    def _numel(self, unit: Unit) -> int:
        return sum(map(self.model.numel, self.units[unit]))

    def _item_bytes(self, unit: Unit) -> int:
        return max((event.size_bytes // self.model.numel(event) for event in self.units[unit]), default=0)

    def _used_again_soon(self) -> Iterator[Unit]:
        """The last layers, and of a small model all, until the backward pass (``__params_to_release``)."""
        between = 2 * self._numel(LAST)
        order: list[Unit] = [*reversed(self.layers), FIRST]
        for unit in order:
            if between >= self.plan.reuse_elements:
                return
            yield unit
            between += 2 * self._numel(unit)
