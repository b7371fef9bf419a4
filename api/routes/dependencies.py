"""What routes are given: store, settings, inquiries and supervision. Knows nothing of what bodies mean.

All are coroutines: FastAPI calls any other function in a thread, which takes longer than they do.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Request

from ...runners.jobs import Inquiries
from ...store import Store
from ..credentials import Credentials
from ..leaderboard import Leaderboards
from ..lookout import Lookout
from ..settings import ServerSettings
from ..supervision import Supervision
from ..uploads import UploadFolder


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


async def _supervision(request: Request) -> Supervision | None:
    supervision: Supervision | None = request.app.state.supervision
    return supervision


async def _inquiries(request: Request) -> Inquiries:
    inquiries: Inquiries = request.app.state.inquiries
    return inquiries


async def _lookout(request: Request) -> Lookout:
    lookout: Lookout = request.app.state.lookout
    return lookout


async def _credentials(request: Request) -> Credentials:
    credentials: Credentials = request.app.state.credentials
    return credentials


async def _leaderboards(request: Request) -> Leaderboards:
    leaderboards: Leaderboards = request.app.state.leaderboards
    return leaderboards


async def _uploads(request: Request) -> UploadFolder:
    uploads: UploadFolder = request.app.state.uploads
    return uploads


async def require_json(request: Request) -> None:
    """Tell a forgotten ``-H 'Content-Type: application/json'`` from a body that is wrong."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, f"the body is {media_type or 'of no stated type'}, not application/json")


CredentialsDep = Annotated[Credentials, Depends(_credentials)]
StoreDep = Annotated[Store, Depends(_store)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
InquiriesDep = Annotated[Inquiries, Depends(_inquiries)]
SupervisionDep = Annotated[Supervision | None, Depends(_supervision)]
LookoutDep = Annotated[Lookout, Depends(_lookout)]
LeaderboardsDep = Annotated[Leaderboards, Depends(_leaderboards)]
UploadsDep = Annotated[UploadFolder, Depends(_uploads)]
