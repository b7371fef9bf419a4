"""What routes are given: the application's store, settings and supervision. Knows nothing of HTTP bodies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from ...store import Store
from ..settings import ServerSettings
from ..supervision import Supervision


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


def _supervision(request: Request) -> Supervision | None:
    supervision: Supervision | None = request.app.state.supervision
    return supervision


StoreDep = Annotated[Store, Depends(_store)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
SupervisionDep = Annotated[Supervision | None, Depends(_supervision)]
