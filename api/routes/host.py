"""Routes about the machine and the server themselves."""

from __future__ import annotations

from fastapi import APIRouter

from ... import __version__
from ...probes.host import read_hardware
from ..response_schemas.host import HardwareDocument, HealthDocument
from ..supervision import SupervisionState
from .dependencies import SettingsDep, StoreDep, SupervisionDep

router = APIRouter(tags=["host"])


@router.get("/v1/hardware", summary="Read GPUs, processor, memory and disk now")
def read_hardware_now(settings: SettingsDep, store: StoreDep) -> HardwareDocument:
    """A fresh probe, not what a study saw; with the devices that are in quarantine."""
    return HardwareDocument.of(read_hardware(settings.home.root), store.list_quarantines())


@router.get("/healthz", summary="Whether the server answers")
async def check_health(supervision: SupervisionDep) -> HealthDocument:
    """Also says whether studies are being worked on."""
    state = supervision.state if supervision else SupervisionState.OFF
    return HealthDocument(version=__version__, supervisor=state)
