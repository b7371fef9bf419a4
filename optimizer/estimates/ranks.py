"""One rank's tape: what all schemes have in common, and DDP, which divides nothing.

Knows nothing of gathering what was divided (``gathering.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from .shard_plan import MIB, Offload, Scheme, ShardPlan
from .tape import Event, Kind, Phase, Place, Tape

_FIRST_DDP_BUCKET_BYTES = MIB
"""``torch.distributed._DEFAULT_FIRST_BUCKET_BYTES``."""
MASTER_BYTES = 4
"""ZeRO keeps float32 masters of what is trained, also of float32 weights (stage_1_and_2.py clones them)."""
_ALIGNED_ELEMENTS = 2
"""``nccl_start_alignment_factor``: a flat group is padded to so many elements a rank."""


class Model:
    """The weights on a tape, by layer, and a rank's share of them."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        self.plan, self.tape = plan, tape
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

    def flat_copies(self) -> int:
        """Copies of what is trained that the optimizer needs at a time, if all of it is one tensor.

        As many as it makes of a parameter: torch's AdamW two where it goes from one to the next, and one
        where it takes all at once.
        """
        largest = max(self.trained_sizes, default=0)
        live: set[int] = set()
        made = most = 0
        for event in self.tape.events:
            if event.phase is not Phase.OPTIMIZER or self.tape.kinds[event.block] is not Kind.TEMPORARIES:
                continue
            if event.size_bytes == largest:
                live.add(event.block)
                made, most = made + 1, max(most, len(live))
            elif not event.size_bytes:
                live.discard(event.block)
        return min(most, made // max(1, self.trained_sizes.count(largest)))

    @property
    def flat_share(self) -> int:
        """Elements of a rank in stages 1 and 2: what is trained, flattened and padded."""
        return divided(sum(self.trained_numels), self.plan.ranks * _ALIGNED_ELEMENTS) * _ALIGNED_ELEMENTS

    @property
    def stage_3_share(self) -> int:
        """Elements of a rank in stage 3, which pads every parameter (``_aligned_size``)."""
        return sum(divided(numel, self.plan.ranks) for numel in self.trained_numels)

    def numel(self, event: Event) -> int:
        """Numbers in a weight."""
        plan = self.plan
        item = plan.trained_item_bytes if event.block in self.trained else plan.frozen_item_bytes
        return event.size_bytes // item

    def part(self, size: int) -> int:
        """One rank's part of so many bytes."""
        return divided(size, self.plan.ranks)

    def shard_bytes(self, size: int, item_bytes: int) -> int:
        """One rank's part of what is trained, its numbers of this size."""
        return divided(size * item_bytes, self.plan.trained_item_bytes * self.plan.ranks)

    def frozen_shard_bytes(self, size: int) -> int:
        """What all ranks of FSDP together keep of a frozen weight that has this size on the tape."""
        item = self.plan.frozen_shard_item_bytes
        return size if item is None else size * item // self.plan.frozen_item_bytes

    @property
    def optimized_item_bytes(self) -> int:
        """Of one number as the optimizer sees it."""
        return self.plan.master_item_bytes if self.plan.scheme is Scheme.FSDP else MASTER_BYTES

    def state_part(self, size: int) -> int:
        """One rank's part of a block of optimizer state, or of what the optimizer needs meanwhile."""
        return (
            self.shard_bytes(size, self.optimized_item_bytes) if self.plan.state_follows else self.part(size)
        )


class Rank:
    """A tape being played again as a rank would: the common part."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        self.tape, self.plan, self.model = tape, plan, Model(tape, plan)
        self.kinds = dict(tape.kinds)
        self.number = max(tape.kinds, default=0) + 1
        self.streams: dict[int, int] = {}
        self.events: list[Event] = []
        self.phase = Phase.BUILD
        self.place: Place | None = None
        self.lagging: frozenset[int] = frozenset()
        self.absent: set[int] = set()
        self.is_last_pass = False
        """No other micro-batch follows in this step."""
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
            following = runs[number + 1][0] if number + 1 < len(runs) else None
            self.is_last_pass = following is not Phase.FORWARD
            self.begins()
            for place, own in segments:
                self._play_segment(place, own)
            self.place = None
            self.ends()
        return Tape(tuple(self.events), self.kinds, self.tape.work, self.streams, self.lagging)

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

    def allocate(self, size_bytes: int, kind: Kind, *, stream: int = 0) -> int | None:
        """A block of the library's own; None for an empty one."""
        if size_bytes <= 0:
            return None
        block = self.number
        self.number += 1
        self.kinds[block] = kind
        if stream:
            self.streams[block] = stream
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

    def ends(self) -> None:
        """A phase ends."""

    def enters(self, place: Place | None) -> None:
        """A layer, or what lies between layers, is computed next."""

    def leaves(self, place: Place | None) -> None:
        """It has been computed."""


class Ddp(Rank):
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


def divided(number: int, parts: int) -> int:
    """Rounded up."""
    return -(-number // parts)
