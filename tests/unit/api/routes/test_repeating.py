from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient


def test_a_request_that_is_sent_again_makes_no_second_study(
    client: TestClient, body: dict[str, Any], root: Path
) -> None:
    headers = {"Idempotency-Key": "01J0"}
    first = client.post("/v1/studies", json=body, headers=headers)
    shutil.rmtree(root / "model")  # nothing is checked again
    again = client.post("/v1/studies", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(client.get("/v1/studies").json()["studies"]) == 1


def test_a_key_with_another_request_is_a_problem(client: TestClient, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "01J0"}
    client.post("/v1/studies", json=body, headers=headers)
    answer = client.post("/v1/studies", json=body | {"seed": 1}, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:rankwise:problem:key-reused")


def test_a_request_that_was_refused_keeps_no_key(client: TestClient, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "01J0"}
    assert client.post("/v1/studies", json=body | {"seed": "x"}, headers=headers).status_code == 422
    assert client.post("/v1/studies", json=body, headers=headers).status_code == 202


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256])
def test_a_key_that_is_none_is_a_problem(client: TestClient, body: dict[str, Any], key: str) -> None:
    answer = client.post("/v1/studies", json=body, headers={"Idempotency-Key": key.encode()})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/idempotency-key"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["model_arguments", "baseline", "seed", "epochs"])
def test_numbers_that_are_none_are_refused_wherever_they_stand(
    client: TestClient, body: dict[str, Any], place: str, number: str
) -> None:
    value: Any = {"depth": [{"a": "?"}]} if place in ("model_arguments", "baseline") else "?"
    text = json.dumps(body | {place: value}).replace('"?"', number)
    answer = client.post("/v1/studies", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(f"/{place}")


def test_query_and_body_are_both_looked_at(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(
        "/v1/studies", json=body | {"seed": "x", "epochs": -1}, headers={"Idempotency-Key": "a b"}
    )
    pointers = {(each["location"], each["pointer"]) for each in answer.json()["errors"]}
    assert pointers == {("header", "/idempotency-key"), ("body", "/seed"), ("body", "/epochs")}
