"""From the tape of one GPU to that of one rank of several, by the rules of the libraries that share it out.

DDP, DeepSpeed's ZeRO 1 to 3 and FSDP's full shard as accelerate and transformers set them up: blocks that are
divided become smaller, and what the library adds (buckets, gathered layers, float32 copies) is allocated and
freed where it does so. "stage_1_and_2.py" and the like are files of ``deepspeed/runtime/zero`` (0.19),
"fully_shard" is ``torch/distributed/fsdp/_fully_shard`` (2.13). Knows nothing of torch, of how a tape is
recorded, and of NCCL's own buffers (``overheads.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from .tape import Event, Kind, Phase, Place, Tape

MIB = 2**20
_FIRST_DDP_BUCKET_BYTES = MIB
"""``torch.distributed._DEFAULT_FIRST_BUCKET_BYTES``."""
_MASTER_BYTES = 4
"""ZeRO keeps float32 masters of what is trained, also of float32 weights (stage_1_and_2.py clones them)."""
_ALIGNED_ELEMENTS = 2
"""``nccl_start_alignment_factor``: a flat group is padded to so many elements a rank."""


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
    state_follows: bool = True
    """Optimizer state has the dtype of the weights, which an 8-bit optimizer's has not."""
    keeps_frozen: bool = False
    """Frozen weights of layers are not divided: FSDP2 leaves out 4-bit ones whose ``quant_storage`` is no
    floating dtype (``fsdp2_prepare_model``), and stages of DeepSpeed cannot gather them."""
    gathers_twice: bool = True
    """FSDP2 copies out of what it gathered; FSDP1 (transformers' default until 5) gathers in place, and keeps
    embeddings and head together."""
    recomputes_units: bool = False
    """Re-entrant checkpointing is around FSDP1's units, as transformers has it, so that a backward pass runs
    them again with their hooks (:class:`_Fsdp` says what follows). Of no account for FSDP2."""
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
    model = _Model(tape, plan)
    if plan.scheme is Scheme.FSDP:
        shards = sum(model.shard_bytes(size, plan.master_item_bytes) for size in model.trained_sizes)
        return 2 * shards + sum(map(model.part, model.frozen_sizes)) + model.state_bytes
    share = model.stage_3_share if plan.scheme is Scheme.ZERO_3 else model.flat_share
    total = share * (2 * _MASTER_BYTES + plan.trained_item_bytes) + model.state_bytes
    if plan.scheme is not Scheme.ZERO_3:
        total += max(model.trained_sizes, default=0)  # temp_grad_buffer_for_cpu_offload
    if plan.offload is Offload.ALL:
        total += share * plan.trained_item_bytes + sum(map(model.part, model.frozen_sizes))
    return total


class _Model:
    """The weights on a tape, by layer, and a rank's share of them."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        self.plan = plan
        weights = [
            event
            for event in tape.events
            if event.phase is Phase.BUILD
            and event.size_bytes
            and tape.kinds[event.block] in (Kind.ADAPTER, Kind.BASE_WEIGHTS)
        ]
        self.trained = {event.block: event for event in weights if tape.kinds[event.block] is Kind.ADAPTER}
        self.divided = {
            event.block: event
            for event in weights
            if event.block in self.trained or event.place is None or not plan.keeps_frozen
        }
        self.trained_sizes = [event.size_bytes for event in self.trained.values()]
        self.frozen_sizes = [e.size_bytes for e in self.divided.values() if e.block not in self.trained]
        self.trained_numels = [size // plan.trained_item_bytes for size in self.trained_sizes]
        states = (
            event.size_bytes
            for event in tape.events
            if event.size_bytes and tape.kinds[event.block] is Kind.OPTIMIZER_STATE
        )
        self.state_bytes = sum(map(self.state_part, states))

    @property
    def flat_share(self) -> int:
        """Elements of a rank in stages 1 and 2: what is trained, flattened and padded."""
        return _divided(sum(self.trained_numels), self.plan.ranks * _ALIGNED_ELEMENTS) * _ALIGNED_ELEMENTS

    @property
    def stage_3_share(self) -> int:
        """Elements of a rank in stage 3, which pads every parameter (``_aligned_size``)."""
        return sum(_divided(numel, self.plan.ranks) for numel in self.trained_numels)

    def numel(self, event: Event) -> int:
        """Numbers in a weight."""
        plan = self.plan
        item = plan.trained_item_bytes if event.block in self.trained else plan.frozen_item_bytes
        return event.size_bytes // item

    def part(self, size: int) -> int:
        """One rank's part of so many bytes."""
        return _divided(size, self.plan.ranks)

    def shard_bytes(self, size: int, item_bytes: int) -> int:
        """One rank's part of what is trained, its numbers of this size."""
        return _divided(size * item_bytes, self.plan.trained_item_bytes * self.plan.ranks)

    @property
    def optimized_item_bytes(self) -> int:
        """Of one number as the optimizer sees it."""
        return self.plan.master_item_bytes if self.plan.scheme is Scheme.FSDP else _MASTER_BYTES

    def state_part(self, size: int) -> int:
        """One rank's part of a block of optimizer state, or of what the optimizer needs meanwhile."""
        return (
            self.shard_bytes(size, self.optimized_item_bytes) if self.plan.state_follows else self.part(size)
        )


class _Rank:
    """A tape being played again as a rank would: the common part."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        self.tape, self.plan, self.model = tape, plan, _Model(tape, plan)
        self.kinds = dict(tape.kinds)
        self.number = max(tape.kinds, default=0) + 1
        self.events: list[Event] = []
        self.phase = Phase.BUILD
        self.place: Place | None = None
        self.absent: set[int] = set()
        self.layers = list(
            dict.fromkeys(
                event.place
                for event in tape.events
                if event.phase is Phase.FORWARD and event.place is not None and event.size_bytes
            )
        )

    def result(self) -> Tape:
        """The rank's tape."""
        runs = [
            (phase, [(place, list(own)) for place, own in groupby(run, key=lambda event: event.place)])
            for phase, run in groupby(self.tape.events, key=lambda event: event.phase)
        ]
        for number, (phase, segments) in enumerate(runs):
            if phase is not Phase.BUILD and self.phase is Phase.BUILD:
                self.place = None
                self.built()
            self.phase, self.place = phase, None
            self.begins()
            for place, own in segments:
                self._play_segment(place, own)
            self.place = None
            following = runs[number + 1][0] if number + 1 < len(runs) else None
            self.ends(following)
        return Tape(tuple(self.events), self.kinds, self.tape.work)

    def _play_segment(self, place: Place | None, own: Sequence[Event]) -> None:
        self.place = place
        # Where layers only free, as at the end of autocast, nothing is computed.
        is_used = self.phase is not Phase.BUILD and any(event.size_bytes for event in own)
        if is_used:
            self.enters(place)
        for event in own:
            if event.size_bytes:
                self.allocates(event)
            else:
                self.frees(event)
        if is_used:
            self.leaves(place)

    def allocate(self, size_bytes: int, kind: Kind) -> int | None:
        """A block of the library's own; None for an empty one."""
        if size_bytes <= 0:
            return None
        block = self.number
        self.number += 1
        self.kinds[block] = kind
        self.events.append(Event(block, size_bytes, self.phase, self.place))
        return block

    def free(self, block: int | None) -> None:
        """Free a block, unless it is none of the device's or was freed before."""
        if block is not None and block not in self.absent:
            self.events.append(Event(block, 0, self.phase, self.place))

    def briefly(self, size_bytes: int, kind: Kind = Kind.TEMPORARIES) -> None:
        """Allocate, and free at once."""
        self.free(self.allocate(size_bytes, kind))

    def keep(self, event: Event, size_bytes: int) -> None:
        """One of the tape's own blocks in this size; 0 where it is not on the device."""
        if size_bytes:
            self.events.append(event._replace(size_bytes=size_bytes))
        else:
            self.absent.add(event.block)

    def allocates(self, event: Event) -> None:
        """The tape allocates one of its own."""
        kind = self.tape.kinds[event.block]
        if self.phase is Phase.BUILD:
            self.keep(event, self.weight_bytes(event))
        elif self.phase is Phase.OPTIMIZER and kind in (Kind.OPTIMIZER_STATE, Kind.TEMPORARIES):
            self.keep(event, 0 if self.is_offloaded else self.optimizer_bytes(event))
        elif kind is Kind.GRADIENTS:
            self.gradient(event)
        else:
            self.keep(event, event.size_bytes)

    def frees(self, event: Event) -> None:
        """The tape frees one of its own."""
        self.free(event.block)

    @property
    def is_offloaded(self) -> bool:
        """The optimizer runs on the host."""
        return self.plan.offload is not Offload.NONE

    def weight_bytes(self, event: Event) -> int:
        """What is left of a weight."""
        return event.size_bytes

    def optimizer_bytes(self, event: Event) -> int:
        """What is left of a block of the optimizer's."""
        return self.model.state_part(event.size_bytes)

    def gradient(self, event: Event) -> None:
        """The gradient of one parameter is there."""
        self.keep(event, event.size_bytes)

    def built(self) -> None:
        """The model is built; the library wraps it."""

    def begins(self) -> None:
        """A phase begins."""

    def ends(self, following: Phase | None) -> None:
        """A phase ends."""

    def enters(self, place: Place | None) -> None:
        """A layer, or what lies between layers, is computed next."""

    def leaves(self, place: Place | None) -> None:
        """It has been computed."""


class _Ddp(_Rank):
    """Buckets as large as all gradients (``gradient_as_bucket_view`` is False), made with the reducer."""

    def built(self) -> None:
        for size in self._bucket_sizes():
            self.allocate(size, Kind.GRADIENTS)

    def _bucket_sizes(self) -> Iterator[int]:
        """A bucket is closed by the gradient that fills it (``compute_bucket_assignment_by_size``)."""
        filled, limit = 0, _FIRST_DDP_BUCKET_BYTES
        for size in reversed(self.model.trained_sizes):
            filled += size
            if filled >= limit:
                yield filled
                filled, limit = 0, self.plan.ddp_bucket_bytes
        yield filled

    def optimizer_bytes(self, event: Event) -> int:
        return event.size_bytes


class _Zero(_Rank):
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
            self.allocate(self.share * _MASTER_BYTES, Kind.OPTIMIZER_STATE)
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
        if self.item != _MASTER_BYTES:
            wide = self.allocate(size * _MASTER_BYTES, Kind.GRADIENTS)
            self.free(flat)
            flat = wide
        self.free(self.kept)
        self.kept = None
        self.optimized = [flat]

    def _optimized_elements(self) -> int:
        return self.share


_Unit = Place | str
"""A layer, or :data:`_FIRST` or :data:`_LAST`."""
_FIRST, _LAST = "first", "last"


class _Gathering(_Rank):
    """A rank that has parts of weights, and gathers those of a layer while it is computed.

    The first weight outside of layers is taken for the embedding, the others come after the layers; a lone
    one, whose head is tied to it, is both.
    """

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.units: dict[_Unit, list[Event]] = defaultdict(list)
        outside: list[Event] = []
        for event in self.model.divided.values():
            if not self.is_whole(event):
                (outside if event.place is None else self.units[event.place]).append(event)
        self.units[_FIRST], self.units[_LAST] = outside[:1], outside[1:] or outside[:1]
        self.is_tied = self.units[_FIRST] == self.units[_LAST]
        self.gathered: dict[_Unit, list[int | None]] = {}
        self.was_in_layers = False

    def is_whole(self, event: Event) -> bool:
        """A weight that is divided but always there as a whole, too."""
        return event.block not in self.model.divided

    def begins(self) -> None:
        self.was_in_layers = False
        super().begins()

    def ends(self, following: Phase | None) -> None:
        super().ends(following)
        if self.phase in (Phase.BACKWARD, Phase.EVALUATION):
            for unit in list(self.gathered):
                self.release(unit)

    def enters(self, place: Place | None) -> None:
        super().enters(place)
        if self.phase not in (Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION):
            return
        if place is not None:
            self.was_in_layers = True
            self.release_outside()
            self.use(place)
        elif self.phase is Phase.BACKWARD:
            if not self.was_in_layers:
                self.use(_LAST)
        else:
            self.use(_LAST if self.was_in_layers else _FIRST)

    def leaves(self, place: Place | None) -> None:
        super().leaves(place)
        if place is not None and not (self.phase is Phase.FORWARD and place in self.staying):
            self.release(place)

    @property
    def staying(self) -> Collection[_Unit]:
        """Units that stay gathered from the forward to the backward pass."""
        return ()

    def release_outside(self) -> None:
        """What is outside of layers is not used in them."""
        self.release(_FIRST)
        self.release(_LAST)

    def use(self, unit: _Unit) -> None:
        """This unit is computed next."""
        self.gather(unit)

    def gather(self, unit: _Unit) -> None:
        """Have these weights whole, unless they are."""
        if unit == _LAST and self.is_tied and _FIRST in self.gathered:
            return
        if unit not in self.gathered:
            self.gathered[unit] = [
                self.allocate(self.whole_bytes(event), self.tape.kinds[event.block])
                for event in self.units[unit]
            ]

    def release(self, unit: _Unit) -> None:
        """Free what was gathered."""
        for block in self.gathered.pop(unit, ()):
            self.free(block)

    def whole_bytes(self, event: Event) -> int:
        """A gathered weight, padding included."""
        return self.model.part(event.size_bytes) * self.plan.ranks

    def unit_bytes(self, unit: _Unit) -> int:
        """All that a unit gathers."""
        return sum(map(self.whole_bytes, self.units[unit]))

    def next_layer(self, unit: _Unit) -> Place | None:
        """The layer that is computed after this one."""
        order = self.layers[::-1] if self.phase is Phase.BACKWARD else self.layers
        if not isinstance(unit, Place) or unit not in order:
            return None
        at = order.index(unit) + 1
        return order[at] if at < len(order) else None

    def weight_bytes(self, event: Event) -> int:
        if event.block not in self.model.divided:
            return event.size_bytes
        return 0 if self.plan.offload is Offload.ALL else self.part_bytes(event)

    def part_bytes(self, event: Event) -> int:
        """A rank's part of a weight."""
        return self.model.part(event.size_bytes)


class _Zero3(_Gathering, _Zero):
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
    def staying(self) -> Collection[_Unit]:
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
            self.allocate(self.share * _MASTER_BYTES, Kind.OPTIMIZER_STATE)

    def release_outside(self) -> None:
        self.release(_LAST)
        if self.phase is Phase.EVALUATION or _FIRST not in self.soon:
            self.release(_FIRST)

    def use(self, unit: _Unit) -> None:
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
        return part if is_state else _divided(part, self._sub_groups)

    @property
    def _sub_groups(self) -> int:
        return max(1, _divided(self.share, self.plan.sub_group_elements))

    def _optimized_elements(self) -> int:
        return _divided(self.share, self._sub_groups)

    def _make_buckets(self) -> None:
        """One there was from the start."""

    def _partition(self) -> None:
        """One there was from the start."""

    def _numel(self, unit: _Unit) -> int:
        return sum(map(self.model.numel, self.units[unit]))

    def _item_bytes(self, unit: _Unit) -> int:
        return max((event.size_bytes // self.model.numel(event) for event in self.units[unit]), default=0)

    def _used_again_soon(self) -> Iterator[_Unit]:
        """The last layers, and of a small model all, until the backward pass (``__params_to_release``)."""
        between = 2 * self._numel(_LAST)
        order: list[_Unit] = [*reversed(self.layers), _FIRST]
        for unit in order:
            if between >= self.plan.reuse_elements:
                return
            yield unit
            between += 2 * self._numel(unit)


class _Fsdp(_Gathering):
    """Full shard, a layer a unit. A backward pass fetches the next unit while one is computed.

    Where FSDP1's units are recomputed, it fetches none: a forward pass without a graph puts no hook on a
    unit's output that would ask for it (``_needs_pre_backward_unshard``). And a frozen unit waits for the
    gradient of its input with a hook that holds on to the leaf of the recomputed graph, so that input and
    gradient stay until the whole pass ends (``_register_post_backward_reshard_only_hook`` and
    ``_finalize_params`` in ``torch/distributed/fsdp/_runtime_utils.py``). A layer with frozen weights counts
    as a frozen unit: PEFT's ``fsdp_auto_wrap_policy`` gives what is trained units of its own.
    """

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.is_recomputed = plan.recomputes_units and not plan.gathers_twice
        self.frozen = {
            event.place for event in self.model.divided.values() if event.block not in self.model.trained
        }
        self.made_in: dict[int, Place | None] = {}
        self.held: list[int] = []
        self.buffers: dict[_Unit, int | None] = {}
        self.reduced: int | None = None
        self.unreduced: list[int | None] = []
        self.waiting: list[Event] = []

    def begins(self) -> None:
        super().begins()
        if self.phase is Phase.BACKWARD and self.layers and not self.is_recomputed:
            self._fetch(self.layers[-1])
        elif not self.plan.gathers_twice and self.phase in (Phase.FORWARD, Phase.EVALUATION):
            self.gather(_FIRST)
            self.gather(_LAST)

    def ends(self, following: Phase | None) -> None:
        if self.phase is Phase.BACKWARD:
            self._reduce(None)
            self.free(self.reduced)
            self.reduced = None
            for block in self.held:
                self.free(block)
            self.held = []
        self._free_buffers()
        super().ends(following)

    def enters(self, place: Place | None) -> None:
        if place is not None or self.plan.gathers_twice:
            super().enters(place)

    def release_outside(self) -> None:
        # The head's unit is not resharded after forward, and a tied embedding is part of it.
        if self.plan.gathers_twice and not self.is_tied:
            super().release_outside()

    def use(self, unit: _Unit) -> None:
        if unit in self.gathered and self.phase is not Phase.BACKWARD:
            return
        if self.plan.gathers_twice and unit not in self.gathered:
            fetched = self.buffers.pop(unit, None) or self.allocate(self.unit_bytes(unit), Kind.BASE_WEIGHTS)
            self._free_buffers()
            self.gather(unit)
            if self.phase is Phase.BACKWARD:
                self.free(fetched)
            else:
                # Kept until the next is copied out, so that both overlap (wait_for_unshard).
                self.buffers[unit] = fetched
        else:
            self.gather(unit)
        following = self.next_layer(unit)
        if following is not None and self.phase is Phase.BACKWARD and not self.is_recomputed:
            self._fetch(following)

    def allocates(self, event: Event) -> None:
        self.made_in[event.block] = self.place
        super().allocates(event)

    def frees(self, event: Event) -> None:
        if self.is_recomputed and self.phase is Phase.BACKWARD and self._is_between_layers(event.block):
            self.held.append(event.block)
        else:
            super().frees(event)

    def _is_between_layers(self, block: int) -> bool:
        """What one layer made and a frozen one frees: an input in forward order, its gradient in backward."""
        maker = self.made_in[block]
        return maker is not None and maker != self.place and self.place in self.frozen

    def leaves(self, place: Place | None) -> None:
        super().leaves(place)
        if self.phase is Phase.BACKWARD and place is not None:
            self._reduce(place)

    def gradient(self, event: Event) -> None:
        self.unreduced.append(self.allocate(event.size_bytes, Kind.GRADIENTS))
        self.waiting.append(event)

    def part_bytes(self, event: Event) -> int:
        if event.block in self.model.trained:
            return self.model.shard_bytes(event.size_bytes, self.plan.master_item_bytes)
        return super().part_bytes(event)

    def _fetch(self, unit: _Unit) -> None:
        if not self.plan.gathers_twice:
            self.gather(unit)
        elif unit not in self.buffers:
            self.buffers[unit] = self.allocate(self.unit_bytes(unit), Kind.BASE_WEIGHTS)

    def _free_buffers(self) -> None:
        for block in self.buffers.values():
            self.free(block)
        self.buffers = {}

    def _reduce(self, place: Place | None) -> None:
        """Gradients are copied into one buffer, freed, and scattered (``foreach_reduce``).

        The buffer is kept until the next unit has its own (``reduce_scatter_states``).
        """
        trained = [event for event in self.model.trained.values() if event.place == place]
        if not trained:
            return
        self.free(self.reduced)
        self.reduced = self.allocate(sum(map(self.whole_bytes, trained)), Kind.GRADIENTS)
        for block in self.unreduced:
            self.free(block)
        for event in self.waiting:
            is_away = self.plan.offload is Offload.ALL
            size = self.model.shard_bytes(event.size_bytes, self.plan.master_item_bytes)
            self.keep(event, 0 if is_away else size)
        self.unreduced, self.waiting = [], []


def _divided(number: int, parts: int) -> int:
    """Rounded up."""
    return -(-number // parts)


_SCHEMES: dict[Scheme, type[_Rank]] = {
    Scheme.DDP: _Ddp,
    Scheme.ZERO_1: _Zero,
    Scheme.ZERO_2: _Zero,
    Scheme.ZERO_3: _Zero3,
    Scheme.FSDP: _Fsdp,
}
