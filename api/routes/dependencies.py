"""What routes are given: store, settings, inquiries and supervision. Knows nothing of what bodies mean."""

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


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


def _supervision(request: Request) -> Supervision | None:
    supervision: Supervision | None = request.app.state.supervision
    return supervision


def _inquiries(request: Request) -> Inquiries:
    inquiries: Inquiries = request.app.state.inquiries
    return inquiries


def _lookout(request: Request) -> Lookout:
    lookout: Lookout = request.app.state.lookout
    return lookout


def _credentials(request: Request) -> Credentials:
    credentials: Credentials = request.app.state.credentials
    return credentials


def _leaderboards(request: Request) -> Leaderboards:
    leaderboards: Leaderboards = request.app.state.leaderboards
    return leaderboards


def _uploads(request: Request) -> UploadFolder:
    uploads: UploadFolder = request.app.state.uploads
    return uploads


def require_json(request: Request) -> None:
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
