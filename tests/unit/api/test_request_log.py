from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.app import create_app
from rankwise.api.credentials import digest_of, new_token
from rankwise.api.log_format import LogFormat
from rankwise.api.request_log import configure_logging, log
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.roles import Role
from rankwise.store import Store


@pytest.fixture
def app(home: Home) -> FastAPI:
    app = create_app(ServerSettings(home=home, require_token=True), supervise=False)

    @app.get("/v1/crash")
    def crash() -> None:
        raise ZeroDivisionError(f"with {new_token()}")

    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level, own = root.handlers, root.level, log.level
    yield stream
    root.handlers = before
    root.setLevel(level)
    log.setLevel(own)


@pytest.fixture
def secret(store: Store) -> str:
    made = new_token()
    store.create_token(name="ci", role=Role.SUBMITTER, digest=digest_of(made))
    return made


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_who_asked_for_what_and_how_it_ended(
    client: TestClient, store: Store, secret: str, written: io.StringIO
) -> None:
    study = store.create_study(StudyRequest(model="m", dataset="d"), owner="ci")
    configure_logging(LogFormat.JSON, written)
    headers = {"Authorization": f"Bearer {secret}", "X-Request-ID": "job-42"}
    answer = client.get(f"/v1/studies/{study.id}?secret=abc", headers=headers)
    assert answer.headers["X-Request-ID"] == "job-42"
    [line] = lines(written)
    assert line["request_id"] == "job-42"
    assert (line["method"], line["path"], line["status"]) == ("GET", f"/v1/studies/{study.id}", 200)
    assert (line["caller"], line["study_id"], line["level"]) == ("ci", study.id, "info")
    assert 0 < line["duration_s"] < 60


def test_secrets_are_never_in_it(client: TestClient, secret: str, written: io.StringIO) -> None:
    configure_logging(LogFormat.JSON, written)
    begun = client.post("/v1/session", headers={"Authorization": f"Bearer {secret}"})
    session = begun.cookies["rankwise_session"]
    client.get(f"/v1/{secret}?token={secret}", headers={"X-Request-ID": secret})
    client.get("/v1/studies", headers={"Authorization": f"Bearer {new_token()}"})
    client.post(
        "/v1/studies", json={"model": "hunter2"}, headers={"Authorization": f"Bearer {secret}", "Cookie": ""}
    )
    client.get("/v1/crash")
    assert len(lines(written)) >= 5
    for hidden in (secret[4:], session[4:], "hunter2", digest_of(secret)):
        assert hidden not in written.getvalue()


def test_a_crash_has_its_traceback_and_its_request(
    client: TestClient, secret: str, written: io.StringIO
) -> None:
    configure_logging(LogFormat.JSON, written)
    answer = client.get("/v1/crash", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 500
    [line] = [line for line in lines(written) if line.get("status") == 500]
    assert line["level"] == "error"
    assert line["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", 'a"b', "é", "a;b"])
def test_an_id_that_is_none_is_replaced(client: TestClient, sent: str) -> None:
    answer = client.get("/healthz", headers={"X-Request-ID": sent.encode()})
    assert answer.headers["X-Request-ID"] not in {"", sent}


def test_every_line_of_other_loggers_is_json_too(written: io.StringIO) -> None:
    configure_logging(LogFormat.JSON, written)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request\nreceived from %s", new_token())
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("rankwise.x").exception("it broke")
    first, second = lines(written)
    assert first["message"].startswith("Invalid HTTP request\nreceived from rw_…")
    assert "ValueError: inside" in second["traceback"]


def test_people_see_failures_only(client: TestClient, secret: str, written: io.StringIO) -> None:
    configure_logging(LogFormat.TEXT, written)
    headers = {"Authorization": f"Bearer {secret}"}
    client.get("/v1/studies", headers=headers)
    assert written.getvalue() == ""
    client.get("/v1/crash", headers=headers)
    assert "ERROR: GET '/v1/crash' 500" in written.getvalue()
