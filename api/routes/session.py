"""Routes about who one is: begin a browser's session with a token, see who one is, end it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

from ..access import SESSION_PATH, CallerDep, ReaderDep
from ..authentication import SESSION_COOKIE, session_in
from ..credentials import digest_of, new_session
from ..problems import problem_docs
from ..response_schemas.access import CallerDocument
from .dependencies import CredentialsDep, SettingsDep, StoreDep

LONGEST_SESSION = timedelta(hours=12)

router = APIRouter(prefix=SESSION_PATH, tags=["access"])


@router.get("", summary="Who you are to this server", responses=problem_docs(401))
async def read_session(caller: ReaderDep, settings: SettingsDep) -> CallerDocument:
    """Your name and role."""
    return CallerDocument.of(caller, token_required=settings.require_token)


@router.post("", summary="Begin a session in a browser", responses=problem_docs(401, 422))
async def begin_session(
    request: Request,
    response: Response,
    caller: CallerDep,
    settings: SettingsDep,
    store: StoreDep,
    credentials: CredentialsDep,
) -> CallerDocument:
    """Send a token as ``Authorization: Bearer``; the answer sets a cookie that stands for it, twelve hours at
    most, and not longer than the token is accepted. Scripts of the page cannot read it."""
    if caller.token_id is None or caller.is_session:
        raise HTTPException(422, "a session begins with a token, and the request came without one")
    secret = new_session()
    await run_in_threadpool(
        store.begin_session,
        caller.token_id,
        digest=digest_of(secret),
        expires_at=datetime.now(UTC) + LONGEST_SESSION,
    )
    credentials.forget()
    response.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=int(LONGEST_SESSION.total_seconds()),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return CallerDocument.of(caller, token_required=settings.require_token)


@router.delete("", status_code=204, summary="End the browser's session", responses=problem_docs(401))
async def end_session(
    request: Request, caller: ReaderDep, store: StoreDep, credentials: CredentialsDep
) -> Response:
    """The cookie is accepted no more, and is taken back. The token stays as it is."""
    secret = session_in(request.headers)
    if caller.is_session and secret is not None:
        await run_in_threadpool(store.end_session, digest_of(secret))
        credentials.forget()
    response = Response(status_code=204)
    response.delete_cookie(
        SESSION_COOKIE, secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return response
