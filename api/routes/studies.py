"""Routes about studies: ask for one, follow it, read what came of it, cancel it.

Routes without ``async`` run in a thread, since the store blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from ...errors import Conflict, InputError, RankwiseError
from ...optimizer.domain import Study, StudyState
from ...optimizer.trainers.formats import Format
from ...runners.exporting import export
from ...store import Store
from ...store.listing import Position, StudyFilter, StudySort
from ..access import Caller, SubmitterDep, require_owner
from ..baseline_outcome import baseline_document
from ..comparing import compare_studies
from ..documents import recommendation_of
from ..failure import failure_of
from ..handover import report_of, result_texts
from ..problems import problem_docs, problem_of, problem_response
from ..report_page import CONTENT_SECURITY_POLICY
from ..request_schemas import STUDY_EXAMPLES, StudyBody
from ..response_schemas.exports import ExportDocument, FilesDocument
from ..response_schemas.parts import study_path
from ..response_schemas.recommendations import DifferenceDocument, RecommendationDocument
from ..response_schemas.studies import StudyDocument, StudyList
from ..settings import ServerSettings
from ..submission import InvalidRequest, RequestProblem, examine_request
from ..uploads import UploadFolder
from .brief import brief, briefly
from .dependencies import LookoutDep, SettingsDep, StoreDep, UploadsDep, require_json
from .freshness import NOT_MODIFIED, fresh_tag, json_answer, known_answer, study_texts, text_answer
from .paging import Cursor, next_path, read_cursor, read_sort, refused, write_cursor
from .repeating import REPLAYED, IdempotencyKey, fingerprint
from .waiting import preferred_wait, wait_until_final

MAX_PAGE = 200

Prefer = Annotated[
    list[str] | None, Header(description="`wait=N` waits up to N seconds (at most 600) for the result.")
]

router = APIRouter(prefix="/v1/studies", tags=["studies"])


@router.post(
    "",
    status_code=202,
    response_model=StudyDocument,
    summary="Ask which fine-tuning configuration to run",
    dependencies=[Depends(require_json)],
    responses={
        200: {"model": RecommendationDocument, "description": "The study succeeded while you waited"},
        202: {"description": "The study is stored; Location says where"},
        **problem_docs(403, 409, 413, 415, 422),
    },
)
async def create_study(
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    lookout: LookoutDep,
    uploads: UploadsDep,
    caller: SubmitterDep,
    body: Annotated[StudyBody, Body(openapi_examples=STUDY_EXAMPLES)],
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> StudyDocument | Response:
    """Store a study; with ``Prefer: wait=N``, stay until it has ended or the time is over. With an
    ``Idempotency-Key``, a request that is sent again is answered with the study that it made."""
    once = None if idempotency_key is None else (idempotency_key, fingerprint(await request.body()))
    study, is_new = await run_in_threadpool(_submit, store, settings, uploads, body, caller, once)
    headers = {"Location": study_path(study.id)} | ({} if is_new else {REPLAYED: "true"})
    wait_s = preferred_wait(prefer or [])
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        study = await wait_until_final(lookout, store, study.id, wait_s=wait_s, request=request)
    if not study.state.is_final:
        response.headers.update(headers)
        return await run_in_threadpool(_study_document, store, study)
    if study.state is not StudyState.SUCCEEDED:
        return problem_response(problem_of(_why_none(study), instance=study_path(study.id)), headers)
    document = await run_in_threadpool(_recommendation_document, store, study)
    return Response(document.model_dump_json(), 200, headers, "application/json")


@router.get(
    "",
    summary="List studies, newest first",
    response_model=StudyList,
    responses={**NOT_MODIFIED, **problem_docs(404, 422)},
)
@brief
def list_studies(
    request: Request,
    response: Response,
    store: StoreDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Cursor = None,
    sort: Annotated[
        str, Query(description="`created`, `updated` or `state`; `-updated`: what changed last first.")
    ] = "-created",
    before: Annotated[str | None, Query(description="Only studies older than this one.")] = None,
    state: Annotated[list[StudyState] | None, Query(description="May be repeated.")] = None,
    model: Annotated[str | None, Query(max_length=4096, description="As it was asked for.")] = None,
    dataset: Annotated[str | None, Query(max_length=4096, description="As it was asked for.")] = None,
    created_after: Annotated[
        datetime | None, Query(description="Then, or later; UTC if it says no zone.")
    ] = None,
    created_before: Annotated[datetime | None, Query()] = None,
    owner: Annotated[str | None, Query(max_length=200, description="Who asked for it.")] = None,
    q: Annotated[
        str | None,
        Query(max_length=200, description="Part of a model's or dataset's name, or the beginning of an id."),
    ] = None,
) -> Response:
    """``next`` leads to the next page. In the order of creation, what is added meanwhile is neither repeated
    nor left out. Times without a zone are UTC."""
    name, descending = read_sort(sort, [each.value for each in StudySort])
    after = read_cursor(cursor, sort, kinds=(int, str))
    position = _study_position(StudySort(name), after, cursor)
    wanted = StudyFilter(
        states=tuple(state or ()),
        model=model,
        dataset=dataset,
        owner=owner,
        created_from=_in_utc(created_after),
        created_before=_in_utc(created_before),
        text=q,
    )
    page = store.page_studies(
        wanted,
        limit=limit,
        sort=StudySort(name),
        descending=descending,
        after=position,
        older_than=before,
    )
    following = write_cursor(sort, page.next)
    if known := known_answer(request, response, fresh_tag(request, *page.marks, also=following)):
        return known
    frame = StudyList(
        studies=(), next=next_path(request, following, without=("before",)), next_cursor=following
    )
    studies = study_texts(request, page.marks, partial(_study_texts, store))
    body = frame.model_dump_json().encode()
    return text_answer(
        request, response, body.replace(b'"studies":[]', b'"studies":[%b]' % b",".join(studies), 1)
    )


@router.get(
    "/{study_id}",
    summary="Where a study stands",
    response_model=StudyDocument,
    responses={**NOT_MODIFIED, **problem_docs(404)},
)
async def read_study(
    request: Request,
    response: Response,
    store: StoreDep,
    lookout: LookoutDep,
    study_id: str,
    prefer: Prefer = None,
) -> Response:
    """State, progress, and what the probes found; with ``Prefer: wait=N``, once it has ended or the time is
    over."""
    wait_s = preferred_wait(prefer or [])
    if wait_s is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
        await wait_until_final(lookout, store, study_id, wait_s=wait_s, request=request)
    return await briefly(_read_study, request, response, store, study_id)


@router.delete(
    "/{study_id}", status_code=202, summary="Cancel a study", responses=problem_docs(403, 404, 409)
)
def cancel_study(store: StoreDep, caller: SubmitterDep, study_id: str) -> StudyDocument:
    """A queued study is cancelled at once, a running one once its trial has been stopped. Somebody else's
    study is an admin's to cancel."""
    require_owner(caller, store.get_study(study_id).owner, f"study {study_id}")
    return _study_document(store, store.request_cancel(study_id))


@router.get(
    "/{study_id}/recommendation",
    summary="What a study recommends",
    response_model=RecommendationDocument,
    responses={**NOT_MODIFIED, **problem_docs(404)},
)
@brief
def read_recommendation(request: Request, response: Response, store: StoreDep, study_id: str) -> Response:
    """404 until the study has succeeded."""
    if known := known_answer(request, response, fresh_tag(request, store.get_mark(study_id))):
        return known
    return json_answer(request, response, _recommendation_document(store, store.get_study(study_id)))


@router.get(
    "/{study_id}/report",
    summary="A finished study as a page",
    response_class=HTMLResponse,
    responses={**NOT_MODIFIED, **problem_docs(404)},
)
def read_report(request: Request, response: Response, store: StoreDep, study_id: str) -> Response:
    """One HTML file that loads and runs nothing. 404 until the study has succeeded."""
    if known := known_answer(request, response, fresh_tag(request, store.get_mark(study_id))):
        return known
    policy = f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'"
    return HTMLResponse(
        report_of(store, study_id), headers={**response.headers, "Content-Security-Policy": policy}
    )


@router.get("/{study_id}/files", summary="A finished study as files", responses=problem_docs(404))
def read_files(store: StoreDep, study_id: str) -> FilesDocument:
    """What ``rankwise recommend --out`` writes. 404 until the study has succeeded."""
    return FilesDocument(study_id=study_id, files=result_texts(store, study_id))


@router.get(
    "/{study_id}/exports/{form}",
    summary="What a study recommends, in the files of another trainer",
    responses=problem_docs(404, 409, 422),
)
def read_export(store: StoreDep, study_id: str, form: Format) -> ExportDocument:
    """``not_expressible`` lists what the trainer cannot be told; 422 where it would train something else."""
    return ExportDocument.of(export(store, study_id, form))


@router.get(
    "/{study_id}/compare/{other}",
    summary="What changed from another study to this one",
    responses=problem_docs(404, 422),
)
def compare_with(store: StoreDep, study_id: str, other: str) -> DifferenceDocument:
    """``other`` is the older: same model and rows, another environment. Shapes that both measured."""
    return DifferenceDocument.of(compare_studies(store, other, study_id))


def _read_study(request: Request, response: Response, store: Store, study_id: str) -> Response:
    mark = store.get_mark(study_id)
    if known := known_answer(request, response, fresh_tag(request, mark)):
        return known
    return text_answer(request, response, study_texts(request, [mark], partial(_study_texts, store))[0])


def _study_position(sort: StudySort, after: Position | None, cursor: str | None) -> Position | None:
    """With the value as the store compares it.

    Raises:
        RequestValidationError: the cursor holds none that studies are sorted by.
    """
    if after is None:
        return None
    value, key = after
    try:
        match sort:
            case StudySort.CREATED:
                return int(value), key
            case StudySort.UPDATED:
                return datetime.fromisoformat(value), key
            case StudySort.STATE:
                return StudyState(value), key
    except (ValueError, TypeError):
        raise refused("cursor", "this is no cursor of a page", cursor) from None


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _submit(
    store: Store,
    settings: ServerSettings,
    uploads: UploadFolder,
    body: StudyBody,
    caller: Caller,
    once: tuple[str, str] | None,
) -> tuple[Study, bool]:
    """The study, and whether it is new; ``once`` are a key and what is asked for under it."""
    if once is not None and (known := store.find_study_by_key(caller.name, *once)):
        return known, False
    request, problems = examine_request(
        body.to_request(),
        roots=settings.allowed_roots,
        allow_remote_code=settings.allow_remote_code,
        factories=settings.allowed_factories,
        locate=uploads.resolve,
    )
    webhooks = list(settings.webhooks.urls)
    if body.webhook_url is not None:
        try:
            settings.webhooks.check(body.webhook_url)
        except InputError as error:
            problems = (*problems, RequestProblem("webhook_url", error))
        webhooks.append(body.webhook_url)
    if problems:
        raise InvalidRequest(problems)
    if once is None:
        return store.create_study(request, owner=caller.name, webhooks=webhooks), True
    key, told = once
    return store.create_study_once(request, owner=caller.name, key=key, fingerprint=told, webhooks=webhooks)


def _study_texts(store: Store, study_ids: Sequence[str]) -> dict[str, bytes]:
    counts = store.count_trials(study_ids)
    return {
        study.id: StudyDocument.of(study, counts[study.id]).model_dump_json().encode()
        for study in store.get_studies(study_ids)
    }


def _study_document(store: Store, study: Study) -> StudyDocument:
    return StudyDocument.of(study, store.count_trials([study.id])[study.id])


def _recommendation_document(store: Store, study: Study) -> RecommendationDocument:
    recommendation = store.get_recommendation(study.id)
    trials = store.list_trials(study.id) if study.request.baseline else ()
    return recommendation_of(study, recommendation, baseline_document(study, trials, recommendation))


def _why_none(study: Study) -> RankwiseError:
    """Why a study ended without a recommendation. That it was cancelled is no fault of the server."""
    failure = failure_of(study)
    if failure is None or study.state is StudyState.CANCELLED:
        return Conflict(f"study {study.id} was cancelled", next_step="post it again to run it")
    return failure
