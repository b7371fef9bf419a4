"""DeepSpeed's ZeRO 1 to 3 as transformers sets them up.

"stage_1_and_2.py" and the like are files of ``deepspeed/runtime/zero`` (0.19).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

from .gathering import FIRST, LAST, Gathering, Unit
from .ranks import MASTER_BYTES, Rank, divided
from .shard_plan import Scheme, ShardPlan
from .tape import Event, Kind, Phase, Place, Tape

_MODULES_A_LAYER = 13
"""Of a Llama, adapters aside: itself, attention with 4 projections, MLP with 3 and an activation, 2 norms."""


class Zero(Rank):
    """Stages 1 and 2 (stage_1_and_2.py), and what stage 3 has in common with them."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.share = self.model.flat_share
        self.item = plan.trained_item_bytes
        self.filled = 0
        self.done: set[Place | None] = set()
        self.is_reducing = False
        """Gradients have come in this backward pass."""
        self.sizes = {(event.place, event.size_bytes) for event in self.model.trained.values()}
        self.buckets: list[int | None] = []
        self.kept: int | None = None
        self.fresh: int | None = None
        self.optimized: list[int | None] = []
        self.ready: list[int | None] = []
        self.whole: list[int] = []
        self.whole_numels: list[int] = []
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
            self.done, self.is_reducing = set(), False
        elif self.phase is Phase.OPTIMIZER and not self.is_offloaded:
            self._flatten()

    def ends(self) -> None:
        if self.phase is Phase.BACKWARD:
            if self.frees_gradients:
                self._fill_place(None)
                self._reduce()
            elif self.is_last_pass:
                self._reduce_all()
            self._merge()
            if self.frees_gradients or self.is_last_pass:
                for bucket in self.buckets:
                    self.free(bucket)
                self.buckets = []
        elif self.phase is Phase.OPTIMIZER:
            for block in (*self.optimized, self.kept):
                self.free(block)
            self.optimized, self.kept = [], None

    def allocates(self, event: Event) -> None:
        self._copy_ready()
        if self.phase is Phase.BACKWARD and not self.is_reducing:
            # In a further micro-batch gradients are temporary, until they are added to the first one's.
            is_first = self.tape.kinds[event.block] is Kind.GRADIENTS
            if is_first or (self.place, event.size_bytes) in self.sizes:
                self.is_reducing = True
                self._make_buckets()
        super().allocates(event)

    def gradient(self, event: Event) -> None:
        if self.frees_gradients:
            # Copied into the bucket, which is the gradient from then on.
            self.absent.add(event.block)
            self.ready.append(self.allocate(event.size_bytes, Kind.GRADIENTS))
        else:
            self.keep(event, event.size_bytes)
            self.whole.append(event.block)
            self.whole_numels.append(event.size_bytes // self.item)

    def leaves(self, place: Place | None) -> None:
        self._copy_ready()
        if self.is_reducing and self.phase is Phase.BACKWARD and self.frees_gradients and place is not None:
            self._fill_place(place)

    def optimizer_bytes(self, event: Event) -> int:
        # What the optimizer sees is one tensor: its copies are made with the gradient.
        if self.tape.kinds[event.block] is Kind.TEMPORARIES and event.size_bytes in self.model.trained_sizes:
            return 0
        return super().optimizer_bytes(event)

    def _copy_ready(self) -> None:
        for block in self.ready:
            self.free(block)
        self.ready = []

    def _make_buckets(self) -> None:
        """``setup_buckets``: whole buckets at the first gradient, however small the model.

        Stage 1's stay from the first micro-batch of a step to its last.
        """
        if self.buckets:
            return
        size = self.plan.reduce_bucket_elements * self.item
        self.buckets = [self.allocate(size, Kind.GRADIENTS) for _ in range(1 + self.plan.overlap_comm)]

    def _fill_place(self, place: Place | None) -> None:
        """The gradients of a layer, once in a backward pass: it may be left more than once."""
        if place not in self.done:
            self.done.add(place)
            for numel in reversed(self.numels[place]):
                self._fill(numel)

    def _fill(self, numel: int) -> None:
        if self.filled + numel > self.plan.reduce_bucket_elements:
            self._reduce()
        self.filled += numel

    def _reduce(self) -> None:
        """Flatten a bucket into a copy, and keep the rank's part of it (``copy_grads_in_partition``)."""
        if not self.filled:
            return
        self.briefly(self.filled * self.item)
        self._partition()
        self.filled = 0

    def _partition(self) -> None:
        """``grads_in_partition``: room for all of the rank's part."""
        if self.fresh is None and not self.is_offloaded:
            self.fresh = self.allocate(self.share * self.item, Kind.GRADIENTS)

    def _reduce_all(self) -> None:
        """Stage 1: at the end of a step's last backward pass. A bucket is the gradient from then on."""
        for block, numel in zip(self.whole, self.whole_numels, strict=True):
            self._fill(numel)
            self.free(block)
        self._reduce()
        self.absent.update(self.whole)

    def _merge(self) -> None:
        """Add a further micro-batch's gradients to those that are kept."""
        if self.kept is None:
            self.kept = self.fresh
        else:
            self.free(self.fresh)
        self.fresh = None

    def _flatten(self) -> None:
        """The rank's gradients in one piece, then as float32, with what the optimizer needs beside them.

        What they were made from is freed with the last group of parameters; the first is the largest.
        """
        size = self._optimized_elements()
        flat = self.allocate(size * self.item, Kind.GRADIENTS)
        if self.item != MASTER_BYTES:
            wide = self.allocate(size * MASTER_BYTES, Kind.GRADIENTS)
            self.free(flat)
            flat = wide
        if self.plan.optimizer_groups == 1:
            self.free(self.kept)
            self.kept = None
        self.optimized = [flat]
        for _ in range(self.model.flat_copies()):
            self.optimized.append(self.allocate(size * MASTER_BYTES, Kind.TEMPORARIES))

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
        self.put_together: int | None = None
        self.fetched: dict[Unit, int] = {}
        """Fetched ahead → numbers that came with it."""
        self.awaited: set[Unit] = set()
        """The last units of those that were fetched together."""
        self.soon = set(self._used_again_soon())

    @property
    def staying(self) -> Collection[Unit]:
        return self.soon

    def begins(self) -> None:
        super().begins()
        if self.phase is Phase.FORWARD:
            self._prefetch(None)  # modules around the first weights fetch, too

    def allocates(self, event: Event) -> None:
        is_head = self.tape.kinds[event.block] is Kind.LOGITS_AND_LOSS
        if is_head and self.phase is Phase.FORWARD and LAST in self.fetched:
            self.use(LAST)  # a tape has what follows the last layer within it
        super().allocates(event)

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
        if self.phase is not Phase.FORWARD:  # else it was fetched ahead
            self.release(LAST)
        if self.phase is Phase.EVALUATION or FIRST not in self.soon:
            self.release(FIRST)

    def use(self, unit: Unit) -> None:
        self._leave_buffers()
        numels = [self.model.numel(event) for event in self.units[unit]]
        if unit not in self.gathered:
            self.gather(unit)
            self.fetched[unit] = sum(numels)
            self.awaited.add(unit)
        # What comes at once is gathered into one buffer, from which parameters are put together, and which
        # is there until the last of them was waited for (AllGatherCoalescedHandle).
        at_once = min(self.fetched.pop(unit, 0), max(self.plan.prefetch_elements, max(numels, default=0)))
        self.put_together = self.allocate(at_once * self._item_bytes(unit), Kind.TEMPORARIES)
        if unit in self.awaited:
            self._leave_buffers()
        if self.phase is not Phase.EVALUATION:  # which the trace of a step knows nothing of
            self._prefetch(unit)

    def _leave_buffers(self) -> None:
        self.free(self.prefetched)
        self.free(self.put_together)
        self.prefetched = self.put_together = None

    def _prefetch(self, unit: Unit | None) -> None:
        """Every module that is entered fetches some parameters more, until so many are there as may be."""
        room = self.plan.live_elements - sum(map(self._numel, self.gathered))
        room = min(room, _MODULES_A_LAYER * self.plan.prefetch_elements)
        ahead: list[Unit] = []
        for following in self._after(unit):
            if following in self.gathered:
                continue
            numel = self._numel(following)
            if numel > room:
                self.prefetched = self.allocate(room * self._item_bytes(following), Kind.BASE_WEIGHTS)
                break
            self.gather(following)
            ahead.append(following)
            room -= numel
        if ahead:
            self.fetched.update(dict.fromkeys(ahead, sum(map(self._numel, ahead))))
            self.awaited.difference_update(ahead)
            self.awaited.add(ahead[-1])

    def _after(self, unit: Unit | None) -> list[Unit]:
        """What a step uses next, to its end; None is before everything."""
        backward: list[Unit] = [*reversed(self.layers)]
        forward: list[Unit] = [] if self.phase is Phase.BACKWARD else [FIRST, *self.layers]
        order = [*forward, LAST, *backward]
        return order if unit is None else order[order.index(unit) + 1 :]

    def leaves(self, place: Place | None) -> None:
        self._leave_buffers()
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
        order: list[Unit] = [*reversed(self.layers)]
        if any(event.block in self.model.trained for event in self.units[FIRST]):
            order.append(FIRST)  # else no backward pass comes there
        for unit in order:
            if between >= self.plan.reuse_elements:
                return
            yield unit
            between += 2 * self._numel(unit)
