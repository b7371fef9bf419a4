from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient


@pytest.fixture
def model(body: dict[str, Any]) -> str:
    return str(body["model"])


@pytest.fixture
def job(app: FastAPI, client: TestClient, dry_run) -> Any:
    app.state.inquiries = dry_run
    return dry_run


def text(model: str) -> str:
    return f"base_model: {model}\nadapter: lora\nlora_r: 8\nlora_rr: 8\n"


def test_a_text_is_looked_at(client: TestClient, job, model: str) -> None:
    answer = client.post("/v1/check", json={"text": text(model), "gpu": "A100-80GB", "name": "a.yml"})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["file"], document["format"], document["fits"]) == ("a.yml", "axolotl", "yes")
    assert document["findings"][0]["line"] == 4
    assert document["findings"][0]["id"] == "unknown-key"


def test_without_a_place_to_run_there_is_no_verdict(client: TestClient, job, model: str) -> None:
    document = client.post("/v1/check", json={"text": text(model)}).json()
    assert (document["fits"], "no GPU" in document["why_unknown"]) == ("unknown", True)


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"text": text("/etc")}, 403, "outside the allowed folders"),
        ({"text": "a: ["}, 422, "line 1"),
        ({"text": "x: 1"}, 422, "no trainer"),
        ({"text": "x" * (256 * 2**10 + 1)}, 422, "at most"),
        ({"text": ""}, 422, "at least 1"),
        ({"gpu": "B9000"}, 422, "no GPU named"),
        ({"format": "excel"}, 422, "unknown"),
        ({"file": "/etc/passwd"}, 422, "Extra inputs"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    client: TestClient, job, model: str, changes: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/check", json={"text": text(model), **changes})
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
