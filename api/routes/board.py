"""Routes about a study as tables and plots show it: small documents of many trials, and single trials whole.

Routes without ``async`` run in a thread, since the store blocks. Knows nothing of who draws what.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from ...errors import NotFound
from ...runners.exporting import takers_of
from ..board import Boards, Body
from ..problems import problem_docs
from ..response_schemas.board import BoardDocument, StandingsDocument
from ..response_schemas.exports import TakerDocument, TakerList
from ..response_schemas.trials import TrialDocument
from .dependencies import StoreDep

LEAST_COMPRESSED = 2048

router = APIRouter(prefix="/v1/studies/{study_id}", tags=["studies"])


@router.get(
    "/board",
    response_model=BoardDocument,
    summary="A study's trials in figures",
    responses=problem_docs(404),
)
def read_board(
    request: Request,
    study_id: str,
    after: Annotated[
        int, Query(ge=0, lt=2**63, description="Only trials of which an event after this number tells.")
    ] = 0,
) -> Response:
    """All trials in a few figures each, for tables and plots; then, with ``after``, what has changed."""
    return _sent(request, _boards(request).board(study_id, after=after))


@router.get(
    "/standings",
    response_model=StandingsDocument,
    summary="How a study's compared candidates stand",
    responses=problem_docs(404),
)
def read_standings(request: Request, study_id: str) -> Response:
    """Of a running study, so far. What a ranking by other weights needs is in it."""
    return _sent(request, _boards(request).standings(study_id))


@router.get("/trials/{trial_id}", summary="One trial", responses=problem_docs(404))
def read_trial(store: StoreDep, study_id: str, trial_id: str) -> TrialDocument:
    """The plan, what was told, what was measured, and the end of its log."""
    trial = store.get_trial(trial_id)
    if trial.study_id != study_id:
        raise NotFound(f"study {study_id} has no trial {trial_id}", next_step="see its list of trials")
    return TrialDocument.of(trial)


@router.get("/exports", summary="Which trainers take what a study recommends", responses=problem_docs(404))
def list_exports(store: StoreDep, study_id: str) -> TakerList:
    """404 until the study has succeeded."""
    chosen = store.get_recommendation(study_id)
    study, trial = store.get_study(study_id), store.get_trial(chosen.trial_id)
    return TakerList(
        study_id=study_id,
        takers=tuple(
            TakerDocument(format=taker.form, refused=taker.refused, remarks=taker.remarks)
            for taker in takers_of(study, trial, chosen.candidate, chosen.evidence)
        ),
    )


def _boards(request: Request) -> Boards:
    boards: Boards = request.app.state.boards
    return boards


def _sent(request: Request, body: Body) -> Response:
    headers, content = {"Vary": "Accept-Encoding"}, body.plain
    if len(content) >= LEAST_COMPRESSED and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        content = body.compressed
    return Response(content, 200, headers, "application/json")
