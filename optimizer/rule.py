"""What a rule is, and what it is asked about. Knows no rule in particular."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..probes.profiles import HardwareProfile, ModelProfile, TaskKind
from .domain import Adapter, Level, Quantization

PEFT = "peft 0.21"
BITSANDBYTES = "bitsandbytes 0.50, transformers 5.23"

HALF = frozenset({"bfloat16", "float16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An adapter at a level, on the model, task and hardware that it is meant for."""

    adapter: Adapter
    level: Level
    model: ModelProfile
    task: TaskKind | None
    hardware: HardwareProfile
    kinds: frozenset[str]
    """Kinds of the modules that the adapter sits on."""
    narrowest_input: int
    """Fewest input features among those modules; 0 where there are none."""
    packing: bool = False
    """Samples share rows."""
    micro_batch: int = 1

    def has(self, library: str) -> bool:
        """A package, by its name on PyPI, is installed."""
        return library in self.hardware.host.libraries

    @property
    def dtypes(self) -> frozenset[str]:
        """All that the level computes or stores in."""
        return frozenset((self.level.weight_dtype, self.level.compute_dtype, self.level.adapter_dtype))

    @property
    def is_quantized(self) -> bool:
        """Some weights are stored in 8 or 4 bits."""
        return self.level.quantization is not Quantization.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reason for leaving something out."""

    name: str
    reason: str
    """A sentence."""
    versions: str | None
    """What it was tried with; None where it follows from arithmetic or from what rankwise can do."""
    forbids: Callable[[Setting], bool]
