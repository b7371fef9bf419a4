"""What adapters at levels need whatever the batch, against the memory that there is.

Knows nothing of activations, of rules, and of which candidates there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..probes.profiles import ModelProfile
from .domain import Adapter, Level, Method, Quantization, StudyFacts, StudyRequest
from .sizes import device_bytes, frozen_bytes, host_bytes, trainable_parameters, trained_bytes


class Memory:
    """Of a device, and of the host that offloaded state goes to; sums over the modules are made once.

    Args:
        model: what is trained.
        capacity_bytes: of a device, the user's limit on it included.
        host_available_bytes: of the host, for all processes together.
        is_shared: all processes have the one memory, as on a CPU.
    """

    def __init__(
        self, model: ModelProfile, capacity_bytes: int, *, host_available_bytes: int, is_shared: bool
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._host_available_bytes = host_available_bytes
        self._is_shared = is_shared
        self._model = model
        self._trained: dict[Adapter, int] = {}
        self._frozen: dict[tuple[Level, tuple[str, ...]], int] = {}

    @classmethod
    def of(cls, facts: StudyFacts, request: StudyRequest) -> Memory:
        """That of the machine, or the user's limit on a device of it."""
        limits = (request.memory_limit_bytes, device_bytes(facts.hardware))
        return cls(
            facts.model,
            min(filter(None, limits)),
            host_available_bytes=facts.hardware.host.ram_available_bytes,
            is_shared=not facts.hardware.gpus,
        )

    def fits(self, adapter: Adapter, level: Level) -> bool:
        """It may fit: weights, gradients and optimizer state do, and what is offloaded fits the host."""
        if self.least_bytes(adapter, level) > self.capacity_bytes:
            return False
        if level.offload == "none":
            return True
        undivided = Level(weight_dtype=level.weight_dtype, quantization=level.quantization)
        frozen = 0 if adapter.method is Method.FULL else self._frozen_bytes(adapter, undivided)
        return host_bytes(level, self._trainable(adapter), frozen) <= self._host_available_bytes

    def least_bytes(self, adapter: Adapter, level: Level) -> int:
        """As :func:`~.sizes.least_bytes`; of all processes together where they share one memory."""
        least = trained_bytes(level, self._trainable(adapter))
        if adapter.method is not Method.FULL:
            least += self._frozen_bytes(adapter, level)
        return least * (level.processes if self._is_shared else 1)

    def preferred(self, adapter: Adapter, levels: Sequence[Level]) -> Level:
        """The first that fits, an unquantized one if any does; the first of all where none does."""
        fitting = [level for level in levels if self.fits(adapter, level)]
        plain = [level for level in fitting if level.quantization is Quantization.NONE]
        return (plain or fitting or levels)[0]

    def _trainable(self, adapter: Adapter) -> int:
        if adapter not in self._trained:
            self._trained[adapter] = trainable_parameters(adapter, self._model)
        return self._trained[adapter]

    def _frozen_bytes(self, adapter: Adapter, level: Level) -> int:
        key = level, adapter.trained_parts
        if key not in self._frozen:
            in_place = self._trainable(adapter) if adapter.method.unfreezes else 0
            self._frozen[key] = frozen_bytes(level, self._model, adapter.trained_parts, in_place=in_place)
        return self._frozen[key]
