"""The route for estimates: answered while the client waits.

Runs in a thread, since the job is waited for. Knows nothing of how an estimate is worked out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response

from ..estimates import answer, read_question
from ..problems import plain_problem, problem_docs, problem_response
from ..request_schemas import ESTIMATE_EXAMPLES, EstimateBody
from ..response_schemas import EstimateDocument
from .dependencies import InquiriesDep, SettingsDep, StoreDep, require_json

AT_ONCE = 2
"""Estimates that are worked on at a time: each takes a core, and the memory of a job."""
RETRY_AFTER_S = 2

router = APIRouter(prefix="/v1/estimates", tags=["estimates"])


class Turns:
    """How many requests may be worked on at a time."""

    def __init__(self, count: int) -> None:
        self._left = threading.BoundedSemaphore(count)

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Whether it is this one's turn; it ends with the block."""
        if not self._left.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        finally:
            self._left.release()


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
    turns: Turns = request.app.state.estimate_turns
    with turns.one() as is_ours:
        if not is_ours:
            problem = plain_problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{AT_ONCE} other estimates are being worked on",
                next_step="ask again in a few seconds",
                instance=request.url.path,
            )
            return problem_response(problem, {"Retry-After": str(RETRY_AFTER_S)})
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
