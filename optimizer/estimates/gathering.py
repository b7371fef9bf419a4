"""A rank that has parts of weights, and gathers those of a layer while it is computed: the common part.

Knows nothing of when a library fetches ahead or releases (``zero.py``, ``fsdp.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from .ranks import Rank
from .shard_plan import Offload, ShardPlan
from .tape import Event, Phase, Place, Tape

Unit = Place | str
"""A layer, or :data:`FIRST` or :data:`LAST`."""
FIRST, LAST = "first", "last"


class Gathering(Rank):
    """A rank that has parts of weights, and gathers those of a layer while it is computed.

    The first weight outside of layers is taken for the embedding, the others come after the layers; a lone
    one, whose head is tied to it, is both.
    """

    gathering_stream = 0
    """That gathered weights are allocated on."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        super().__init__(tape, plan)
        self.units: dict[Unit, list[Event]] = defaultdict(list)
        outside: list[Event] = []
        for event in self.model.divided.values():
            if not self.is_whole(event):
                (outside if event.place is None else self.units[event.place]).append(event)
        self.units[FIRST], self.units[LAST] = outside[:1], outside[1:] or outside[:1]
        self.is_tied = self.units[FIRST] == self.units[LAST]
        self.gathered: dict[Unit, list[int | None]] = {}
        self.was_in_layers = False

    def is_whole(self, event: Event) -> bool:
        """A weight that is divided but always there as a whole, too."""
        return event.block not in self.model.divided

    def begins(self) -> None:
        self.was_in_layers = False
        super().begins()

    def ends(self) -> None:
        super().ends()
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
                self.use(LAST)
        else:
            self.use(LAST if self.was_in_layers else FIRST)

    def leaves(self, place: Place | None) -> None:
        super().leaves(place)
        if place is not None and not (self.phase is Phase.FORWARD and place in self.staying):
            self.release(place)

    @property
    def staying(self) -> Collection[Unit]:
        """Units that stay gathered from the forward to the backward pass."""
        return ()

    def release_outside(self) -> None:
        """What is outside of layers is not used in them."""
        self.release(FIRST)
        self.release(LAST)

    def use(self, unit: Unit) -> None:
        """This unit is computed next."""
        self.gather(unit)

    def gather(self, unit: Unit) -> None:
        """Have these weights whole, unless they are."""
        if unit == LAST and self.is_tied and FIRST in self.gathered:
            return
        if unit not in self.gathered:
            self.gathered[unit] = [
                self.allocate(
                    self.whole_bytes(event), self.tape.kinds[event.block], stream=self.gathering_stream
                )
                for event in self.units[unit]
            ]

    def release(self, unit: Unit) -> None:
        """Free what was gathered."""
        for block in self.gathered.pop(unit, ()):
            self.free(block)

    def whole_bytes(self, event: Event) -> int:
        """A gathered weight, padding included."""
        return self.model.part(event.size_bytes) * self.plan.ranks

    def unit_bytes(self, unit: Unit) -> int:
        """All that a unit gathers."""
        return sum(map(self.whole_bytes, self.units[unit]))

    def next_layer(self, unit: Unit) -> Place | None:
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
