from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.app import create_app
from rankwise.api.problems import MEDIA_TYPE
from rankwise.api.request_schemas import StudyBody
from rankwise.api.security import SECURITY_HEADERS
from rankwise.api.settings import ServerSettings
from rankwise.home import Home

START = """
import sys
from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
create_app(ServerSettings(home=Home.from_environment()))
heavy = {"torch", "transformers", "peft", "numpy"} & set(sys.modules)
print(*heavy)
"""


@pytest.fixture
def app(home: Home) -> FastAPI:
    return create_app(ServerSettings(home=home), supervise=False)


def test_the_application_starts_without_torch(home: Home) -> None:
    answer = subprocess.run([sys.executable, "-c", START], check=True, capture_output=True, text=True)
    assert answer.stdout.split() == []


def client_of(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://localhost:8321", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404),
        ("GET", "/v2/studies", 404),
        ("GET", "/%F0%9F%90%8D%00", 404),
        ("PUT", "/v1/studies", 405),
        ("POST", "/healthz", 405),
    ],
)
def test_what_is_not_served_is_answered_with_a_problem(
    app: FastAPI, method: str, path: str, status: int
) -> None:
    answer = client_of(app).request(method, path)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    assert answer.json()["next_step"]
    assert status != 405 or answer.headers["Allow"]


def test_a_crash_is_answered_with_a_guarded_problem_that_tells_nothing(app: FastAPI) -> None:
    @app.get("/crash")
    def crash() -> None:
        raise ZeroDivisionError("a secret")

    answer = client_of(app).get("/crash")
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "secret" not in answer.text


def operations(app: FastAPI) -> list[dict[str, Any]]:
    return [operation for path in app.openapi()["paths"].values() for operation in path.values()]


OTHER_TYPES = {
    "read_report": ["text/html"],
    "read_metrics": ["text/plain"],
    "list_events": ["application/json", "text/event-stream"],
    "stream_events": ["text/event-stream"],
    "stream_changes": ["text/event-stream"],
}
"""Operations that answer in anything but JSON alone."""


def test_every_operation_is_documented_with_its_problems(app: FastAPI) -> None:
    found = operations(app)
    assert len(found) >= 23
    for operation in found:
        assert operation["summary"]
        assert operation["description"]
        for status, response in operation["responses"].items():
            shown = OTHER_TYPES.get(operation["operationId"], ["application/json"])
            if status >= "400" or status == "default":
                shown = [MEDIA_TYPE]
            elif status in ("204", "304"):
                shown = []
            assert list(response.get("content", ())) == shown, operation
        assert "default" in operation["responses"]
    assert len({operation["operationId"] for operation in found}) == len(found)


def test_the_documented_examples_are_valid(app: FastAPI) -> None:
    content = app.openapi()["paths"]["/v1/studies"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) == 4
    for example in content["examples"].values():
        StudyBody.model_validate(example["value"])


def test_the_schema_is_the_same_each_time(app: FastAPI) -> None:
    client = client_of(app)
    assert client.get("/openapi.json").json() == client.get("/openapi.json").json()
