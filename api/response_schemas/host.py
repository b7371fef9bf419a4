"""The machine and the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...probes.profiles import GpuProfile, HardwareProfile, HostProfile
from ...store import Quarantine
from ..gpu_history import Sample
from .parts import Document


class HardwareDocument(Document):
    """What trials would run on, read just now."""

    host: HostProfile
    gpus: tuple[GpuProfile, ...]
    gpu_note: str | None
    """Why ``gpus`` is empty."""
    quarantines: tuple[Quarantine, ...] = ()
    """Devices on which no trial is started."""

    @classmethod
    def of(cls, hardware: HardwareProfile, quarantines: Sequence[Quarantine] = ()) -> HardwareDocument:
        """The profile as it is, with what is known to be wrong."""
        return cls(
            host=hardware.host,
            gpus=hardware.gpus,
            gpu_note=hardware.gpu_note,
            quarantines=tuple(quarantines),
        )


class HistoryDocument(Document):
    """What GPUs held and did, the oldest moment first."""

    samples: tuple[Sample, ...]


class ReadyDocument(Document):
    """The server takes requests, and studies are worked on."""

    status: Literal["ready"] = "ready"


class HealthDocument(Document):
    """The server answers; whether studies are being worked on."""

    status: Literal["ok"] = "ok"
    version: str
    supervisor: str
