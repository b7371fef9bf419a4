from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.store import Store


@pytest.fixture
def study_id(client: TestClient, body: dict[str, Any]) -> str:
    """A study that has ended, so that streams of it do."""
    made: str = client.post("/v1/studies", json=body).json()["id"]
    client.delete(f"/v1/studies/{made}")
    return made


def messages(text: str) -> list[dict[str, str]]:
    blocks = [block.splitlines() for block in text.split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block) for block in blocks]


@pytest.mark.parametrize(
    ("path", "headers"), [("events/stream", {}), ("events", {"Accept": "text/event-stream"})]
)
def test_a_stream_holds_what_the_list_holds(
    client: TestClient, study_id: str, path: str, headers: dict[str, str]
) -> None:
    listed = client.get(f"/v1/studies/{study_id}/events").json()["events"]
    answer = client.get(f"/v1/studies/{study_id}/{path}", headers=headers)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-cache"
    first, *streamed = messages(answer.text)
    assert first == {"retry": "2000"}
    assert [json.loads(each["data"]) for each in streamed] == listed
    assert [(int(each["id"]), each["event"]) for each in streamed] == [
        (each["seq"], each["kind"]) for each in listed
    ]


def test_last_event_id_goes_on_and_in_the_end_there_is_nothing_to_come_back_for(
    client: TestClient, study_id: str
) -> None:
    path = f"/v1/studies/{study_id}/events/stream"
    answer = client.get(path, headers={"Last-Event-ID": "1"})
    assert [each["id"] for each in messages(answer.text)[1:]] == ["2"]
    assert client.get(path, headers={"Last-Event-ID": "2"}).status_code == 204
    assert client.get(path, params={"after": 2}).status_code == 204


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 30, "٣"])
def test_an_id_that_no_stream_gave_is_a_problem(client: TestClient, study_id: str, value: str) -> None:
    headers = {"Last-Event-ID": value.encode()}
    for path in (f"/v1/studies/{study_id}/events/stream", "/v1/events/stream"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/last-event-id"


def test_a_study_that_is_not_there_has_no_stream(client: TestClient) -> None:
    answer = client.get("/v1/studies/01ARZ3NDEKTSV4RRFFQ69G5FAV/events/stream")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_more_than_a_thousand_who_follow_are_asked_to_come_back(
    app: FastAPI, client: TestClient, study_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.api.routes.events.MAX_FOLLOWERS", 0)
    answer = client.get(f"/v1/studies/{study_id}/events/stream")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    store: Store = app.state.store
    assert store.get_study(study_id).state == "cancelled"
