"""Routes about studies: ask for one, follow it, read what came of it, cancel it.

Routes without ``async`` run in a thread, since the store blocks.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from ...errors import Conflict, NotFound, RankwiseError
from ...optimizer.domain import Study, StudyState
from ...optimizer.trainers.formats import Format
from ...runners.exporting import export
from ...store import Store
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
from ..response_schemas.parts import StudyLinks, study_path
from ..response_schemas.recommendations import DifferenceDocument, RecommendationDocument
from ..response_schemas.studies import StudyDocument, StudyList
from ..response_schemas.trials import RuledOut, TrialDocument, TrialList
from ..settings import ServerSettings
from ..submission import InvalidRequest, examine_request
from .dependencies import LookoutDep, SettingsDep, StoreDep, require_json
from .waiting import preferred_wait, wait_until_final

MAX_PAGE = 200

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
    caller: SubmitterDep,
    body: Annotated[StudyBody, Body(openapi_examples=STUDY_EXAMPLES)],
    prefer: Annotated[
        list[str] | None, Header(description="`wait=N` waits up to N seconds (at most 600) for the result.")
    ] = None,
) -> StudyDocument | Response:
    """Store a study; with ``Prefer: wait=N``, stay until it has ended or the time is over."""
    study = await run_in_threadpool(_submit, store, settings, body, caller)
    headers = {"Location": study_path(study.id)}
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


@router.get("", summary="List studies, newest first", responses=problem_docs(404))
def list_studies(
    store: StoreDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: Annotated[str | None, Query(description="Only studies older than this one.")] = None,
    state: StudyState | None = None,
) -> StudyList:
    """``next`` leads to the older ones."""
    studies = store.list_studies(limit=limit + 1, before=before, state=state)
    page, older = studies[:limit], studies[limit:]
    next_page = None
    if older:
        query = {"limit": limit, "before": page[-1].id} | ({"state": state.value} if state else {})
        next_page = f"/v1/studies?{urlencode(query)}"
    counts = store.count_trials([study.id for study in page])
    return StudyList(
        studies=tuple(StudyDocument.of(study, counts[study.id]) for study in page), next=next_page
    )


@router.get("/{study_id}", summary="Where a study stands", responses=problem_docs(404))
def read_study(store: StoreDep, study_id: str) -> StudyDocument:
    """State, progress, and what the probes found."""
    return _study_document(store, store.get_study(study_id))


@router.delete(
    "/{study_id}", status_code=202, summary="Cancel a study", responses=problem_docs(403, 404, 409)
)
def cancel_study(store: StoreDep, caller: SubmitterDep, study_id: str) -> StudyDocument:
    """A queued study is cancelled at once, a running one once its trial has been stopped. Somebody else's
    study is an admin's to cancel."""
    require_owner(caller, store.get_study(study_id).owner, f"study {study_id}")
    return _study_document(store, store.request_cancel(study_id))


@router.get(
    "/{study_id}/trials", summary="A study's trials with what they measured", responses=problem_docs(404)
)
def list_trials(store: StoreDep, study_id: str) -> TrialList:
    """In the order of planning, failed ones included."""
    trials = store.list_trials(study_id)
    return TrialList(
        study_id=study_id,
        trials=tuple(TrialDocument.of(trial) for trial in trials),
        ruled_out=RuledOut.among(store.list_estimates(study_id)),
        links=StudyLinks.of(study_id),
    )


@router.get("/{study_id}/recommendation", summary="What a study recommends", responses=problem_docs(404))
def read_recommendation(store: StoreDep, study_id: str) -> RecommendationDocument:
    """404 until the study has succeeded."""
    return _recommendation_document(store, store.get_study(study_id))


@router.get(
    "/{study_id}/report",
    summary="A finished study as a page",
    response_class=HTMLResponse,
    responses=problem_docs(404),
)
def read_report(store: StoreDep, study_id: str) -> HTMLResponse:
    """One HTML file that loads and runs nothing. 404 until the study has succeeded."""
    headers = {"Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'"}
    return HTMLResponse(report_of(store, study_id), headers=headers)


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
    "/{study_id}/trials/{trial_id}/exports/{form}",
    summary="A trial's candidate in the files of another trainer",
    responses=problem_docs(404, 409, 422),
)
def read_trial_export(store: StoreDep, study_id: str, trial_id: str, form: Format) -> ExportDocument:
    """As for a recommendation."""
    trial = store.get_trial(trial_id)
    if trial.study_id != study_id:
        raise NotFound(f"study {study_id} has no trial {trial_id}", next_step="see its list of trials")
    return ExportDocument.of(export(store, trial_id, form))


@router.get(
    "/{study_id}/compare/{other}",
    summary="What changed from another study to this one",
    responses=problem_docs(404, 422),
)
def compare_with(store: StoreDep, study_id: str, other: str) -> DifferenceDocument:
    """``other`` is the older: same model and rows, another environment. Shapes that both measured."""
    return DifferenceDocument.of(compare_studies(store, other, study_id))


def _submit(store: Store, settings: ServerSettings, body: StudyBody, caller: Caller) -> Study:
    request, problems = examine_request(
        body.to_request(),
        roots=settings.allowed_roots,
        allow_remote_code=settings.allow_remote_code,
        factories=settings.allowed_factories,
    )
    if problems:
        raise InvalidRequest(problems)
    return store.create_study(request, owner=caller.name)


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
