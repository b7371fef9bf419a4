"""The server with a socket, in a thread of the test."""

from __future__ import annotations

import inspect
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from rankwise.api.app import Application, create_app
from rankwise.api.server import Server
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store


@contextmanager
def served(app: Application) -> Iterator[tuple[Server, str]]:
    server = Server(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_an_open_stream_tells_what_happens_and_ends_whole_when_the_server_is_told_to_end(home: Home) -> None:
    app = create_app(ServerSettings(home=home), supervise=False)
    with served(app) as (server, url), httpx.stream("GET", f"{url}/v1/events/stream", timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry")
        store: Store = app.state.store
        study = store.create_study(StudyRequest(model="models/MiniLM", dataset="data/reviews.csv"))
        told = next(line for line in lines if line.startswith("data: "))
        assert json.loads(told.removeprefix("data: "))["id"] == study.id
        server.should_exit = True
        for _ in lines:  # raises where the connection is cut off in the middle of an answer
            pass


def test_the_end_of_an_answer_does_not_wait_for_its_head_to_be_acknowledged(home: Home) -> None:
    app = create_app(ServerSettings(home=home), supervise=False)
    with served(app) as (server, url), httpx.Client() as client:
        client.get(f"{url}/healthz").raise_for_status()
        (connection,) = server.server_state.connections
        accepted: socket.socket = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_interface_is_described_before_anybody_asks(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    described = threading.Event()
    monkeypatch.setattr(Application, "description_text", lambda _: described.set())
    with served(create_app(ServerSettings(home=home), supervise=False)):
        assert described.wait(60)


def test_what_routes_are_given_costs_no_thread(home: Home) -> None:
    app = create_app(ServerSettings(home=home), supervise=False)
    given = {
        dependency.call
        for included in app.router.routes
        for route in getattr(getattr(included, "original_router", None), "routes", ())
        if isinstance(route, APIRoute)
        for dependency in _all_of(route.dependant)
    }
    assert len(given) > 8
    assert [call for call in given if not inspect.iscoroutinefunction(call)] == []


def _all_of(dependant: Dependant) -> Iterator[Dependant]:
    for dependency in dependant.dependencies:
        yield dependency
        yield from _all_of(dependency)
