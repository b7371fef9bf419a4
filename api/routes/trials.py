"""Routes about a study's trials: in pages, ranked, and for other trainers."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from ...errors import NotFound
from ...optimizer.domain import Outcome, Rung, TrialState
from ...optimizer.trainers.formats import Format
from ...runners.exporting import export
from ...store import Store
from ...store.listing import TrialFilter, TrialSort
from ..leaderboard import Standings
from ..problems import problem_docs
from ..response_schemas.exports import ExportDocument
from ..response_schemas.leaderboard import LeaderboardDocument
from ..response_schemas.parts import StudyLinks
from ..response_schemas.trials import RuledOut, TrialDocument, TrialList
from .brief import brief, briefly
from .dependencies import LeaderboardsDep, StoreDep
from .freshness import NOT_MODIFIED, fresh_tag, json_answer, known_answer
from .paging import Cursor, next_path, read_cursor, read_sort, write_cursor

DEFAULT_PAGE = 200
MAX_PAGE = 1000
MAX_RULED_OUT = 1000

router = APIRouter(prefix="/v1/studies/{study_id}", tags=["trials"])


@router.get(
    "/trials",
    summary="A study's trials with what they measured",
    response_model=TrialList,
    responses={**NOT_MODIFIED, **problem_docs(404, 422)},
)
@brief
def list_trials(
    request: Request,
    response: Response,
    store: StoreDep,
    study_id: str,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    cursor: Cursor = None,
    sort: Annotated[
        str, Query(description="`number`, `speed`, `memory` or `loss`; `-speed`: the fastest first.")
    ] = "number",
    rung: Annotated[list[Rung] | None, Query(description="May be repeated, like outcome and state.")] = None,
    outcome: Annotated[list[Outcome] | None, Query()] = None,
    state: Annotated[list[TrialState] | None, Query()] = None,
) -> Response:
    """In the order of planning, failed ones included, unless asked for otherwise; what has no such figure
    comes last. ``ruled_out`` is with the first page only."""
    name, descending = read_sort(sort, [each.value for each in TrialSort])
    after = read_cursor(cursor, sort, kinds=(int, float, type(None)))
    mark = store.get_mark(study_id)
    if known := known_answer(request, response, fresh_tag(request, mark)):
        return known
    wanted = TrialFilter(rungs=tuple(rung or ()), outcomes=tuple(outcome or ()), states=tuple(state or ()))
    page = store.page_trials(
        study_id, wanted, limit=limit, sort=TrialSort(name), descending=descending, after=after
    )
    is_first = cursor is None
    following = write_cursor(sort, page.next)
    return json_answer(
        request,
        response,
        TrialList(
            study_id=study_id,
            trials=tuple(TrialDocument.of(trial) for trial in page.trials),
            ruled_out=RuledOut.among(store.list_ruled_out(study_id, MAX_RULED_OUT)) if is_first else (),
            next=next_path(request, following),
            next_cursor=following,
            links=StudyLinks.of(study_id),
        ),
    )


@router.get(
    "/trials/{trial_id}/exports/{form}",
    summary="A trial's candidate in the files of another trainer",
    responses=problem_docs(404, 409, 422),
)
def read_trial_export(store: StoreDep, study_id: str, trial_id: str, form: Format) -> ExportDocument:
    """As for a recommendation."""
    if store.get_trial(trial_id).study_id != study_id:
        raise NotFound(f"study {study_id} has no trial {trial_id}", next_step="see its list of trials")
    return ExportDocument.of(export(store, trial_id, form))


@router.get(
    "/leaderboard",
    summary="A study's candidates, best first",
    response_model=LeaderboardDocument,
    responses={**NOT_MODIFIED, **problem_docs(404, 422)},
)
async def read_leaderboard(
    request: Request,
    response: Response,
    store: StoreDep,
    leaderboards: LeaderboardsDep,
    study_id: str,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Cursor = None,
) -> Response:
    """What could be compared, ranked as the study asks for; what it recommends is first once it succeeded.
    Empty before anything was measured."""
    after = read_cursor(cursor, "rank", kinds=(int,))
    begin = 0 if after is None else after[1]
    write = partial(_leaderboard, request, response, store, begin=begin, limit=limit)

    def ready() -> Response | None:
        standings = leaderboards.ready(store.get_mark(study_id))
        return None if standings is None else write(standings)

    def worked_out() -> Response:
        return write(leaderboards.of(store.get_mark(study_id)))

    answer = await briefly(ready)
    return await run_in_threadpool(worked_out) if answer is None else answer


def _leaderboard(
    request: Request, response: Response, store: Store, standings: Standings, *, begin: int, limit: int
) -> Response:
    mark = standings.as_of
    if known := known_answer(request, response, fresh_tag(request, mark)):
        return known
    study_request = store.get_request(mark.study_id)
    page = standings.page(begin, limit)
    end = begin + len(page.places)
    return json_answer(
        request,
        response,
        LeaderboardDocument(
            study_id=mark.study_id,
            scoring=study_request.scoring,
            weights=study_request.effective_weights,
            as_of_seq=mark.last_event,
            compared=page.compared,
            places=page.places,
            next_cursor=write_cursor("rank", (end, end)) if end < page.compared else None,
            links=StudyLinks.of(mark.study_id),
        ),
    )
