"""The route that looks at another trainer's file: its text comes with the request, and is not kept.

Runs in a thread, since the job is waited for. Knows nothing of what is looked for.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response

from ..checking import Where, check, estimator
from ..problems import problem_docs
from ..request_schemas import CheckBody
from ..response_schemas.checks import CheckDocument
from ..trainer_files import read_trainer_text
from .dependencies import InquiriesDep, SettingsDep, StoreDep, require_json
from .turns import Turns, busy

router = APIRouter(prefix="/v1/check", tags=["estimates"])


@router.post(
    "",
    response_model=CheckDocument,
    summary="Tell what is wrong with a trainer's file, whether it fits, and what would do better",
    dependencies=[Depends(require_json)],
    responses=problem_docs(403, 413, 415, 422, 503),
)
def check_file(
    request: Request,
    settings: SettingsDep,
    inquiries: InquiriesDep,
    store: StoreDep,
    body: Annotated[CheckBody, Body()],
) -> CheckDocument | Response:
    """Nothing is stored, and nothing of the text executed. A local model must lie in an allowed folder, and
    no other file that the text names is read. Without a GPU or a limit there is no verdict on memory."""
    where = Where(
        gpu=body.gpu,
        gpus=body.gpus,
        memory_limit=body.memory_limit,
        is_quick=body.quick,
        is_here=False,
        roots=settings.allowed_roots,
        allow_remote_code=settings.allow_remote_code,
    )
    file = read_trainer_text(body.text, body.name, format_name=body.format)
    turns: Turns = request.app.state.turns
    with turns.one() as is_ours:
        if not is_ours:
            return busy(request)
        asked = estimator(inquiries, where, store.list_estimated)
        return check(file, where, asked, disk=settings.home.root)
