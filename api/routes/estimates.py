"""The route for estimates: answered while the client waits.

Runs in a thread, since the job is waited for. Knows nothing of how an estimate is worked out.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response

from ..estimates import answer, read_question
from ..problems import problem_docs
from ..request_schemas import ESTIMATE_EXAMPLES, EstimateBody
from ..response_schemas.estimates import EstimateDocument, ReadinessDocument
from .dependencies import InquiriesDep, SettingsDep, StoreDep, require_json
from .turns import Turns, busy

router = APIRouter(prefix="/v1/estimates", tags=["estimates"])


@router.post(
    "",
    response_model=EstimateDocument,
    summary="Tell what a fine-tuning needs and how fast it is, without a GPU",
    dependencies=[Depends(require_json)],
    responses=problem_docs(403, 413, 415, 422, 503),
)
def create_estimate(
    request: Request,
    settings: SettingsDep,
    inquiries: InquiriesDep,
    store: StoreDep,
    body: Annotated[EstimateBody, Body(openapi_examples=ESTIMATE_EXAMPLES)],
) -> EstimateDocument | Response:
    """Nothing is stored. 503 while as many others are worked on as may be. Jobs have a time limit."""
    turns: Turns = request.app.state.turns
    with turns.one() as is_ours:
        if not is_ours:
            return busy(request)
        roots, allowed = settings.allowed_roots, settings.allow_remote_code
        question = read_question(roots=roots, allow_remote_code=allowed, **body.options())
        return answer(
            question,
            lambda terms, enough: inquiries.estimate(
                question.model,
                question.settings,
                terms,
                task=question.task,
                enough=enough,
                allowed_roots=roots,
                allow_remote_code=allowed,
            ),
            store.list_estimated,
        )


@router.post(
    "/readiness", summary="Get ready to answer, and tell whether that is done", responses=problem_docs(403)
)
def get_ready(inquiries: InquiriesDep) -> ReadinessDocument:
    """For whoever is about to ask: the first question has to wait for libraries to be imported, which begins
    with this, in a process of its own."""
    return ReadinessDocument(ready=inquiries.get_ready())
