from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.problems import MEDIA_TYPE
from rankwise.api.routes.turns import AT_ONCE
from rankwise.errors import RunnerError

GIB = 2**30


@pytest.fixture
def model(body: dict[str, Any]) -> str:
    return str(body["model"])


@pytest.fixture
def job(app: FastAPI, client: TestClient, dry_run) -> Any:
    """The scripted dry run, in place of the inquiries that the application started with."""
    app.state.inquiries = dry_run
    return dry_run


def test_an_estimate_is_answered_at_once(client: TestClient, job, model: str) -> None:
    answer = client.post("/v1/estimates", json={"model": model, "gpu": "A100-80GB", "batch_size": 4})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["schema_version"], document["fits"]) == (1, "yes")
    assert document["gpu"] == "A100 SXM 80GB"
    assert document["tokens_per_second"]["low"] < document["tokens_per_second"]["high"]
    assert job.sources == [model]


def test_sizes_may_be_text_or_bytes(client: TestClient, job, model: str) -> None:
    for limit in ("6GiB", 6 * GIB):
        document = client.post("/v1/estimates", json={"model": model, "memory_limit": limit}).json()
        assert (document["fits"], document["capacity_bytes"]) == ("no", 6 * GIB)


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"batch_size": 0}, "/batch_size", "batch size 0 is not between"),
        ({"batch_size": "4"}, "/batch_size", "integer"),
        ({"batch_size": 4.5}, "/batch_size", "integer"),
        ({"memory_limit": "24GX"}, "/memory_limit", "unit 'GX'"),
        ({"memory_limit": "24"}, "/memory_limit", "has no unit"),
        ({"gpu": "B9000"}, "/gpu", "no GPU named"),
        ({"gpu": "x" * 200}, "/gpu", "at most 100 characters"),
        ({"method": "lorra"}, "/method", "lorra"),
        ({"batchsize": 4}, "/batchsize", "Extra inputs"),
        ({"which_gpu": True, "gpu": "T4"}, "/which_gpu", "one was named"),
        ({"allow_remote_code": True}, "/allow_remote_code", "Extra inputs"),
    ],
)
def test_a_wrong_body_is_answered_with_its_place(
    client: TestClient, job, model: str, changes: dict[str, Any], pointer: str, words: str
) -> None:
    answer = client.post("/v1/estimates", json={"model": model, **changes})
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, MEDIA_TYPE)
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["message"]
    assert job.sources == []


def test_all_that_is_wrong_is_told_at_once(client: TestClient, job, model: str) -> None:
    body = {"model": f"{model}-not", "batch_size": 0, "gpu": "B9000"}
    errors = client.post("/v1/estimates", json=body).json()["errors"]
    assert {error["pointer"] for error in errors} == {"/model", "/batch_size", "/gpu"}


def test_only_models_inside_the_roots_are_read(client: TestClient, job, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    answer = client.post("/v1/estimates", json={"model": str(outside)})
    assert (answer.status_code, answer.headers["Content-Type"]) == (403, MEDIA_TYPE)
    assert job.sources == []


def test_code_of_a_model_is_run_only_as_the_operator_allows(client: TestClient, job, model: str) -> None:
    (Path(model) / "config.json").write_text('{"auto_map": {"AutoConfig": "config.Config"}}')
    answer = client.post("/v1/estimates", json={"model": model})
    assert answer.status_code == 422
    assert "Python code of its own" in answer.json()["detail"]


def test_other_sites_and_other_bodies_are_refused(client: TestClient, job, model: str) -> None:
    body = {"model": model}
    forged = client.post("/v1/estimates", json=body, headers={"Origin": "http://evil.example"})
    assert forged.status_code == 403
    untold = client.post("/v1/estimates", content=b"{}", headers={"Content-Type": "text/plain"})
    assert untold.status_code == 415
    assert client.get("/v1/estimates").status_code == 405
    assert job.sources == []


def test_more_than_may_be_worked_on_are_told_to_wait(
    client: TestClient, app: FastAPI, job, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested: list[Any] = []
    plain = type(job).estimate

    def estimate(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(nested) < AT_ONCE:  # while this one is worked on, another arrives
            nested.append(client.post("/v1/estimates", json={"model": model}))
        return plain(self, *arguments, **options)

    monkeypatch.setattr(type(job), "estimate", estimate)
    assert client.post("/v1/estimates", json={"model": model}).status_code == 200
    last, *others = nested
    assert [answer.status_code for answer in others] == [200] * (AT_ONCE - 1)
    assert (last.status_code, last.headers["Content-Type"]) == (503, MEDIA_TYPE)
    assert last.headers["Retry-After"]
    assert last.json()["next_step"]
    monkeypatch.setattr(type(job), "estimate", plain)
    assert client.post("/v1/estimates", json={"model": model}).status_code == 200, "turns are given back"


def test_a_job_that_failed_is_a_problem_and_gives_its_turn_back(
    client: TestClient, job, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RunnerError("estimating failed: it took longer than it may", next_step="read the log")

    monkeypatch.setattr(type(job), "estimate", fail)
    for _ in range(AT_ONCE + 1):
        answer = client.post("/v1/estimates", json={"model": model})
        assert (answer.status_code, answer.headers["Content-Type"]) == (500, MEDIA_TYPE)
        assert "longer than it may" in answer.json()["detail"]
