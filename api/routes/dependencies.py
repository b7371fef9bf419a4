"""What routes are given: store, settings, estimator and supervision. Knows nothing of what bodies mean."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Request

from ...runners.jobs import Estimator
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


def _estimator(request: Request) -> Estimator:
    estimator: Estimator = request.app.state.estimator
    return estimator


def require_json(request: Request) -> None:
    """Tell a forgotten ``-H 'Content-Type: application/json'`` from a body that is wrong."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, f"the body is {media_type or 'of no stated type'}, not application/json")


StoreDep = Annotated[Store, Depends(_store)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
EstimatorDep = Annotated[Estimator, Depends(_estimator)]
SupervisionDep = Annotated[Supervision | None, Depends(_supervision)]
