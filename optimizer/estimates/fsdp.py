"""PyTorch's FSDP as accelerate and transformers set it up.

Names are those of ``torch/distributed/fsdp/_fully_shard`` for FSDP2, and of ``_runtime_utils.py`` beside it
for FSDP1 (torch 2.13).
"""

from __future__ import annotations

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

    FSDP1 gathers and reduces on streams of their own (``_unshard_stream``, ``_post_backward_stream``), FSDP2
    gathers into a buffer on one (``all_gather_copy_in_stream``): the allocator keeps a pool for each, whose
    memory no other can use.
    """

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.gathering_stream = 0 if plan.gathers_twice else GATHERING
        self.is_recomputed = plan.recomputes_units and not plan.gathers_twice
        self.frozen = {
            event.place for event in self.model.divided.values() if event.block not in self.model.trained
        }
        self.made_in: dict[int, Place | None] = {}
        self.held: list[int] = []
        self.buffers: dict[Unit, int | None] = {}
        self.reduced: int | None = None
        self.unreduced: list[int | None] = []
        self.waiting: list[Event] = []

    def begins(self) -> None:
        super().begins()
        if self.phase is Phase.BACKWARD and self.layers and not self.is_recomputed:
            self._fetch(self.layers[-1])
        elif not self.plan.gathers_twice and self.phase in (Phase.FORWARD, Phase.EVALUATION):
            self.gather(FIRST)
            self.gather(LAST)

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

    def _reduce(self, place: Place | None) -> None:
        """Gradients are copied into one buffer, freed, and scattered (``foreach_reduce``).

        The buffer is kept until the next unit has its own (``reduce_scatter_states``).
        """
        trained = [event for event in self.model.trained.values() if event.place == place]
        if not trained:
            return
        self.free(self.reduced)
        stream = 0 if self.plan.gathers_twice else REDUCING
        self.reduced = self.allocate(sum(map(self.whole_bytes, trained)), Kind.GRADIENTS, stream=stream)
        for block in self.unreduced:
            self.free(block)
        for event in self.waiting:
            is_away = self.plan.offload is Offload.ALL
            size = self.model.shard_bytes(event.size_bytes, self.plan.master_item_bytes)
            self.keep(event, 0 if is_away else size)
        self.unreduced, self.waiting = [], []
