"""PyTorch's FSDP as accelerate and transformers set it up.

Names are those of ``torch/distributed/fsdp/_fully_shard`` for FSDP2, and of ``_runtime_utils.py`` beside it
for FSDP1 (torch 2.13).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from .gathering import FIRST, LAST, Gathering, Unit
from .shard_plan import Offload, ShardPlan
from .tape import Event, Kind, Phase, Place, Tape

GATHERING, REDUCING = 1, 2
"""Streams beside the one that computes."""


class Fsdp(Gathering):
    """Full shard, a layer a unit. A backward pass fetches the next unit while one is computed.

    Where FSDP1's units are recomputed, it fetches none: a forward pass without a graph puts no hook on a
    unit's output that would ask for it (``_needs_pre_backward_unshard``). And a frozen unit waits for the
    gradient of its input with a hook that holds on to the leaf of the recomputed graph, so that input and
    gradient stay until the whole pass ends (``_register_post_backward_reshard_only_hook`` and
    ``_finalize_params``). A layer with frozen weights counts as a frozen unit: PEFT's
    ``fsdp_auto_wrap_policy`` gives what is trained units of its own.

    FSDP1 gathers a unit as one flat parameter. It gathers and reduces on streams of their own
    (``_unshard_stream``, ``_post_backward_stream``), FSDP2 gathers into a buffer on one
    (``all_gather_copy_in_stream``): the allocator keeps a pool for each, whose memory no other can use.
    """

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        if not plan.gathers_twice:
            # What is computed with gathered weights may lag behind the host, which gathers on until two
            # units were freed that are still in use (_FreeEventQueue): one more than without a host ahead.
            self.gathering_stream, self.lagging = GATHERING, frozenset({GATHERING})
        self.is_recomputed = plan.recomputes_units and not plan.gathers_twice
        self.fetches_ahead = plan.gathers_twice or (plan.fetches_ahead and not self.is_recomputed)
        self.frozen = {
            event.place for event in self.model.divided.values() if event.block not in self.model.trained
        }
        self.made_in: dict[int, Place | None] = {}
        self.held: list[int] = []
        self.buffers: dict[Unit, int | None] = {}
        self.reduced: int | None = None
        self.unreduced: dict[Unit, list[int | None]] = defaultdict(list)
        self.waiting: dict[Unit, list[Event]] = defaultdict(list)
        self.is_mixed = plan.mixes_units and not plan.gathers_twice
        self.mixed: list[int | None] = []
        self.flat: set[Place] = set()
        self.expected = Counter((event.place, event.size_bytes) for event in self.model.trained.values())

    def begins(self) -> None:
        super().begins()
        if self.phase is Phase.BACKWARD and self.layers and self.fetches_ahead:
            self._fetch(self.layers[-1])
        elif not self.plan.gathers_twice and self.phase in (Phase.FORWARD, Phase.EVALUATION):
            self.gather(FIRST)
            self.gather(LAST)

    def ends(self) -> None:
        if self.phase is Phase.BACKWARD:
            for unit in list(self.waiting) if self.is_last_pass else ():
                self._reduce(unit)
            self.free(self.reduced)
            self.reduced = None
            for held in self.held:
                self.free(held)
            self.held = []
        elif self.phase is Phase.OPTIMIZER:
            for mixed in self.mixed:
                self.free(mixed)
            self.mixed = []
        self._free_buffers()
        super().ends()

    def enters(self, place: Place | None) -> None:
        if place is not None or self.plan.gathers_twice:
            super().enters(place)

    def release_outside(self) -> None:
        # The head's unit is not resharded after forward, and a tied embedding is part of it.
        if self.plan.gathers_twice and not self.is_tied:
            super().release_outside()

    def use(self, unit: Unit) -> None:
        if unit in self.gathered and self.phase is not Phase.BACKWARD:
            return
        if self.plan.gathers_twice and unit not in self.gathered:
            fetched = self.buffers.pop(unit, None) or self._buffer(unit)
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
        if following is not None and self.phase is Phase.BACKWARD and self.fetches_ahead:
            self._fetch(following)

    def gather(self, unit: Unit) -> None:
        if self.plan.gathers_twice:
            super().gather(unit)
        elif unit not in self.gathered:
            weights = self.units[unit]
            largest = max(weights, key=lambda event: event.size_bytes, default=None)
            kind = Kind.BASE_WEIGHTS if largest is None else self.tape.kinds[largest.block]
            self.gathered[unit] = [self.allocate(self.unit_bytes(unit), kind, stream=GATHERING)]

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
        if self.phase is not Phase.BACKWARD or place is None:
            return
        if self.is_last_pass:
            self._reduce(place)
        elif self.is_mixed and place not in self.flat:
            self.flat.add(place)
            self.unreduced[place].append(self.allocate(self._beside(place), Kind.GRADIENTS))

    def gradient(self, event: Event) -> None:
        # Whole until the last micro-batch of a step: accelerate reduces no earlier (no_sync).
        unit = self._unit_of(event)
        if unit == self.place and self.is_last_pass and self.plan.gathers_twice:
            self._reduce(LAST)
        self.unreduced[unit].append(self.allocate(event.size_bytes, Kind.GRADIENTS))
        self.waiting[unit].append(event)

    def _unit_of(self, event: Event) -> Unit:
        """Whose gradient it is. A tape has what comes before the last layer and after the first in these."""
        place = self.place
        if place is not None and self.expected[place, event.size_bytes]:
            self.expected[place, event.size_bytes] -= 1
            return place
        # FSDP1 has both in one unit, as FSDP2 has tied ones.
        is_last = place == self.layers[-1] if self.layers else True
        return LAST if is_last and self.plan.gathers_twice and not self.is_tied else FIRST

    def _beside(self, unit: Unit) -> int:
        """What the flat gradient of a unit has for its frozen weights; nothing where all are frozen."""
        trained = sum(map(self.whole_bytes, self.waiting[unit]))
        return max(0, self.unit_bytes(unit) - trained) if trained else 0

    def part_bytes(self, event: Event) -> int:
        if event.block in self.model.trained:
            return self.model.shard_bytes(event.size_bytes, self.plan.master_item_bytes)
        return self.model.part(self.model.frozen_shard_bytes(event.size_bytes))

    def _fetch(self, unit: Unit) -> None:
        if not self.plan.gathers_twice:
            self.gather(unit)
        elif unit not in self.buffers:
            self.buffers[unit] = self._buffer(unit)

    def _buffer(self, unit: Unit) -> int | None:
        return self.allocate(self.unit_bytes(unit), Kind.BASE_WEIGHTS, stream=GATHERING)

    def _free_buffers(self) -> None:
        for block in self.buffers.values():
            self.free(block)
        self.buffers = {}

    def _reduce(self, unit: Unit) -> None:
        """Gradients are copied into one buffer, freed, and scattered (``foreach_reduce``).

        The buffer is kept until the next unit has its own (``reduce_scatter_states``).
        """
        if not self.waiting[unit]:
            return
        self.free(self.reduced)
        stream = 0 if self.plan.gathers_twice else REDUCING
        size = sum(map(self.whole_bytes, self.waiting[unit]))
        if self.is_mixed:
            beside = self._beside(unit)
            size += beside
            shard = self.model.shard_bytes(beside, self.plan.master_item_bytes)
            self.mixed.append(self.allocate(shard, Kind.GRADIENTS))
        self.reduced = self.allocate(size, Kind.GRADIENTS, stream=stream)
        for block in self.unreduced.pop(unit):
            self.free(block)
        for event in self.waiting.pop(unit):
            is_away = self.plan.offload is Offload.ALL
            size = self.model.shard_bytes(event.size_bytes, self.plan.master_item_bytes)
            self.keep(event, 0 if is_away else size)
