"""Routes about what happened: a study's history as pages or as a stream, and studies as they change.

A stream is one coroutine that waits for the :class:`Lookout`; it holds no thread and asks the store nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse

from ...store import Store
from ..lookout import Lookout
from ..problems import plain_problem, problem_docs, problem_response
from ..response_schemas.events import EventList
from .brief import briefly
from .dependencies import LookoutDep, StoreDep
from .freshness import NOT_MODIFIED, fresh_tag, json_answer, known_answer

MAX_EVENTS = 1000
MAX_FOLLOWERS = 1000
"""Streams and waits of one server at a time."""
RETRY_AFTER_S = 10

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies are to pass on each event as it comes."""

_STREAM_TYPE = "text/event-stream"
_STREAM_DOCS: dict[str, Any] = {
    "description": "Server-sent events: `id`, `event` and, as JSON, `data`. Comments are heartbeats",
    "content": {_STREAM_TYPE: {"schema": {"type": "string"}}},
}
_NOTHING_LEFT: dict[str, Any] = {
    "description": "The study has ended and all of it was read: do not come back"
}


class EventStream(StreamingResponse):
    """The messages of a :class:`Lookout`, as they are told."""

    media_type = _STREAM_TYPE


LastEventId = Annotated[
    str | None, Header(description="The `id` that was read last, as browsers send it by themselves.")
]

router = APIRouter(tags=["events"])


@router.get(
    "/v1/studies/{study_id}/events",
    summary="A study's history",
    response_model=EventList,
    responses={
        200: {"content": {_STREAM_TYPE: {"schema": {"type": "string"}}}},
        204: _NOTHING_LEFT,
        **NOT_MODIFIED,
        **problem_docs(404, 503),
    },
)
async def list_events(
    request: Request,
    response: Response,
    store: StoreDep,
    lookout: LookoutDep,
    study_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Only events after this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = MAX_EVENTS,
    last_event_id: LastEventId = None,
) -> Response:
    """Numbered 1, 2, 3 …; ask again with ``after`` set to ``last_seq`` to read on. With ``Accept:
    text/event-stream`` the same as a stream."""
    if _wants_stream(request):
        return await _study_stream(request, store, lookout, study_id, after, last_event_id)
    return await briefly(_page, request, response, store, study_id, after, limit)


@router.get(
    "/v1/studies/{study_id}/events/stream",
    summary="Follow a study",
    response_class=EventStream,
    responses={200: _STREAM_DOCS, 204: _NOTHING_LEFT, **problem_docs(404, 422, 503)},
)
async def stream_events(
    request: Request,
    store: StoreDep,
    lookout: LookoutDep,
    study_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Only events after this number.")] = 0,
    last_event_id: LastEventId = None,
) -> Response:
    """Every event as in the list, ``id`` its number and ``event`` its kind, within a second after it was
    stored. The stream ends with the study."""
    return await _study_stream(request, store, lookout, study_id, after, last_event_id)


@router.get(
    "/v1/events/stream",
    summary="Follow all studies",
    response_class=EventStream,
    responses={200: _STREAM_DOCS, **problem_docs(422, 503)},
)
async def stream_changes(
    request: Request,
    lookout: LookoutDep,
    since: Annotated[
        datetime | None, Query(description="Begin with what changed from then on, such as an `updated_at`.")
    ] = None,
    last_event_id: LastEventId = None,
) -> Response:
    """An event ``study`` for each study that was created or changed; at first for those that are queued or
    running. A change may be told twice."""
    if last_event_id:
        since = _moment(last_event_id)
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    return _full(request, lookout) or EventStream(lookout.changes(since=since), headers=STREAM_HEADERS)


def _page(
    request: Request, response: Response, store: Store, study_id: str, after: int, limit: int
) -> Response:
    if known := known_answer(request, response, fresh_tag(request, store.get_mark(study_id))):
        return known
    events = store.events_after(study_id, after, limit=limit)
    return json_answer(request, response, EventList.of(study_id, events, after=after))


async def _study_stream(
    request: Request, store: Store, lookout: Lookout, study_id: str, after: int, last_event_id: str | None
) -> Response:
    if last_event_id:
        after = _number(last_event_id)
    mark = await run_in_threadpool(store.get_mark, study_id)
    if mark.state.is_final and after >= mark.last_event:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return _full(request, lookout) or EventStream(
        lookout.study_events(mark, after=after), headers=STREAM_HEADERS
    )


def _wants_stream(request: Request) -> bool:
    media_ranges = request.headers.get("accept", "").lower().split(",")
    return any(each.partition(";")[0].strip() == _STREAM_TYPE for each in media_ranges)


def _full(request: Request, lookout: Lookout) -> Response | None:
    """503, where as many follow as may, or the server is about to end."""
    if lookout.followers < MAX_FOLLOWERS and not lookout.is_closed:
        return None
    problem = plain_problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{lookout.followers} clients follow studies already",
        next_step="ask again in a while, or read pages of events",
        instance=request.url.path,
    )
    return problem_response(problem, {"Retry-After": str(RETRY_AFTER_S)})


def _number(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 18):
        raise _wrong_id(last_event_id, "a number of an event")
    return int(last_event_id)


def _moment(last_event_id: str) -> datetime:
    try:
        return datetime.fromisoformat(last_event_id)
    except ValueError:
        raise _wrong_id(last_event_id, "a time that a stream told") from None


def _wrong_id(value: str, what: str) -> RequestValidationError:
    error = {
        "type": "last_event_id",
        "loc": ("header", "last-event-id"),
        "msg": f"this is not {what}",
        "input": value,
    }
    return RequestValidationError([error])
