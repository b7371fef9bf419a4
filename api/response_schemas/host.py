"""The machine and the server."""

from __future__ import annotations

from typing import Literal

from ...probes.profiles import GpuProfile, HardwareProfile, HostProfile
from .parts import Document


class HardwareDocument(Document):
    """What trials would run on, read just now."""

    host: HostProfile
    gpus: tuple[GpuProfile, ...]
    gpu_note: str | None
    """Why ``gpus`` is empty."""

    @classmethod
    def of(cls, hardware: HardwareProfile) -> HardwareDocument:
        """The profile as it is."""
        return cls(host=hardware.host, gpus=hardware.gpus, gpu_note=hardware.gpu_note)


class HealthDocument(Document):
    """The server answers; whether studies are being worked on."""

    status: Literal["ok"] = "ok"
    version: str
    supervisor: str
