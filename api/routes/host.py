"""Routes about the machine and the server themselves."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from ... import __version__
from ...probes.host import read_hardware
from ..gpu_history import GpuHistory
from ..metrics import Metrics
from ..problems import Problem, problem_docs, problem_response
from ..response_schemas.host import HardwareDocument, HealthDocument, HistoryDocument, ReadyDocument
from ..supervision import SupervisionState
from .dependencies import SettingsDep, StoreDep, SupervisionDep

router = APIRouter(tags=["host"])


@router.get("/v1/hardware", summary="Read GPUs, processor, memory and disk now")
def read_hardware_now(request: Request, settings: SettingsDep, store: StoreDep) -> HardwareDocument:
    """A fresh probe, not what a study saw; with the devices that are in quarantine."""
    hardware = read_hardware(settings.home.root)
    _history(request).keep(hardware.gpus)
    return HardwareDocument.of(hardware, store.list_quarantines())


@router.get("/v1/hardware/history", summary="What GPUs held and did in the last hour")
async def read_history(request: Request) -> HistoryDocument:
    """Looked at every few seconds while there are studies to run, and whenever somebody reads the hardware;
    in the memory of this server."""
    return HistoryDocument(samples=_history(request).samples())


@router.get("/healthz", summary="Whether the server answers")
async def check_health(supervision: SupervisionDep) -> HealthDocument:
    """Also says whether studies are being worked on."""
    state = supervision.state if supervision else SupervisionState.OFF
    return HealthDocument(version=__version__, supervisor=state)


@router.get("/openapi.json", include_in_schema=False)
def read_description(request: Request) -> Response:
    """This interface in OpenAPI's words."""
    return Response(request.app.description_text(), media_type="application/json")


@router.get(
    "/readyz",
    response_model=ReadyDocument,
    summary="Whether requests can be sent here",
    responses=problem_docs(503),
)
def check_readiness(
    request: Request, store: StoreDep, supervision: SupervisionDep
) -> ReadyDocument | Response:
    """503 while the database does not answer, or nobody works on studies; ``type`` says which."""
    store.count_devices_in_use()
    if supervision is not None and supervision.state not in (
        SupervisionState.RUNNING,
        SupervisionState.ELSEWHERE,
    ):
        problem = Problem(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            title="No supervisor",
            detail=f"the supervisor is {supervision.state}: studies are stored, and wait",
            type="urn:rankwise:problem:no-supervisor",
            instance=request.url.path,
            next_step="ask again; if it stays so, see the server's log",
        )
        return problem_response(problem, {"Retry-After": "1"})
    return ReadyDocument()


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses=problem_docs(503),
)
def read_metrics(request: Request) -> Response:
    """Text, or OpenMetrics where ``Accept`` asks for it."""
    metrics: Metrics = request.app.state.metrics
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(metrics.registry), media_type=media_type)


def _history(request: Request) -> GpuHistory:
    history: GpuHistory = request.app.state.gpu_history
    return history
