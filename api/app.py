"""The HTTP application: store, supervision, guards and routes put together. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from .. import __version__
from ..runners.jobs import Inquiries
from ..store import Store
from .access import DATASETS_PATH, is_open
from .authentication import SESSION_COOKIE, Authentication
from .board import Boards
from .credentials import Credentials
from .gpu_history import GpuHistory
from .leaderboard import Leaderboards
from .lookout import Lookout
from .metrics import Metrics, RequestMetrics
from .page_files import PageFiles
from .problems import MEDIA_TYPE, Problem, install_problem_handlers
from .request_log import RequestLog
from .routes import (
    board,
    checks,
    datasets,
    estimates,
    events,
    host,
    models,
    pages,
    session,
    studies,
    tokens,
    trials,
)
from .routes.freshness import Answers
from .routes.turns import Turns
from .security import BodyLimit, SameSite, SecurityHeaders
from .settings import ServerSettings
from .supervision import Supervision
from .uploads import UploadFolder
from .webhooks import Webhooks

DESCRIPTION = """\
Finds the fine-tuning configuration to run for a model, a dataset and the hardware at hand, from
measurements. Post a study, follow it, read its recommendation; or post an estimate, which is answered at
once. Times are UTC, sizes bytes, durations
seconds; null is unknown. Every error is `application/problem+json` with the cause and the next step.
"""

SECURITY_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "Made by `rankwise tokens create`"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "Of a browser, set by `POST /v1/session`",
    },
}
"""Where a server demands tokens."""


class Application(FastAPI):
    """FastAPI's, with its order of guards and its way to describe itself."""

    _description: bytes | None = None
    _describing = threading.Lock()

    def build_middleware_stack(self) -> ASGIApp:
        """Log and security headers go around everything, the framework's last-resort answer included."""
        return RequestLog(SecurityHeaders(super().build_middleware_stack()))

    def openapi(self) -> dict[str, Any]:
        """The schema, with problems under the media type that they have, and how one says who one is."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["securitySchemes"] = SECURITY_SCHEMES
            schema["security"] = [{name: []} for name in SECURITY_SCHEMES]
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if is_open(path):
                        operation["security"] = []
                    for status, response in operation["responses"].items():
                        if status >= "400" and "content" in response:
                            # The framework names the type of the route's own answer: JSON, or a page.
                            response["content"] = {MEDIA_TYPE: next(iter(response["content"].values()))}
        return super().openapi()

    def description_text(self) -> bytes:
        """The schema as it is sent; the first who asks, a second long, asks for all."""
        with self._describing:
            if self._description is None:
                self._description = json.dumps(self.openapi(), separators=(",", ":")).encode()
            return self._description


def create_app(settings: ServerSettings, *, supervise: bool = True) -> Application:
    """The application for one home.

    Args:
        settings: where it listens, and what studies may read.
        supervise: run a supervisor for as long as the application lives, so that studies are worked on.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = await run_in_threadpool(Store.open, settings.home.create().database)
        supervision = (
            Supervision(settings.home, allow_remote_code=settings.allow_remote_code) if supervise else None
        )
        app.state.store, app.state.supervision = store, supervision
        app.state.lookout = lookout = Lookout(store)
        app.state.boards = Boards(store)
        await run_in_threadpool(uploads.clear_forgotten)
        app.state.credentials = credentials = Credentials(store)
        app.state.leaderboards = Leaderboards(store)
        app.state.metrics.watch(store, supervision, lookout)
        webhooks = Webhooks(store, settings.webhooks)
        app.state.inquiries = inquiries = Inquiries(settings.home)
        try:
            if supervision:
                supervision.start()
            webhooks.start()
            watching = asyncio.create_task(gpu_history.watch(store))
            try:
                yield
            finally:
                watching.cancel()
        finally:
            await lookout.close()
            await run_in_threadpool(webhooks.stop)
            if supervision:
                await run_in_threadpool(supervision.stop)
            await run_in_threadpool(inquiries.stop)
            await run_in_threadpool(credentials.note_uses)
            store.close()

    app = Application(
        title="rankwise",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,  # FastAPI would write it in the loop, anew for each who asks: routes/host.py
        docs_url=None,  # its pages load their scripts from outside hosts
        redoc_url=None,
        generate_unique_id_function=attrgetter("name"),
        responses={"default": {"model": Problem, "description": "What went wrong, and the next step"}},
    )
    app.state.settings = settings
    app.state.turns = Turns()
    app.state.upload_turns = Turns(datasets.AT_ONCE)
    app.state.uploads = uploads = UploadFolder(settings.home.uploads, limit_bytes=settings.upload_limit_bytes)
    app.state.metrics = metrics = Metrics()
    app.state.page_files = PageFiles()
    app.state.gpu_history = gpu_history = GpuHistory()
    app.state.answers = Answers()
    app.include_router(studies.router)
    app.include_router(trials.router)
    app.include_router(events.router)
    app.include_router(board.router)
    app.include_router(estimates.router)
    app.include_router(checks.router)
    app.include_router(models.router)
    app.include_router(host.router)
    app.include_router(session.router)
    app.include_router(datasets.router)
    app.include_router(tokens.router)
    app.include_router(pages.router)
    app.add_middleware(BodyLimit, streamed=(("POST", DATASETS_PATH),))
    app.add_middleware(Authentication, is_required=settings.require_token, rate=settings.rate_limit)
    app.add_middleware(SameSite, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(RequestMetrics, metrics=metrics)
    install_problem_handlers(app)
    return app
