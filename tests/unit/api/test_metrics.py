from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.api.supervision import SupervisionState
from rankwise.errors import StoreError
from rankwise.home import Home
from rankwise.probes.profiles import GpuProfile


@pytest.fixture
def app(home: Home) -> FastAPI:
    return create_app(ServerSettings(home=home), supervise=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1:8321", raise_server_exceptions=False) as opened:
        yield opened


def read(client: TestClient) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels, in the order of the labels' names."""
    text = client.get("/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_studies_and_trials_are_counted(client: TestClient, script: Any) -> None:
    script.play()
    found = read(client)
    assert found["rankwise_studies", "succeeded"] == 1
    assert (found["rankwise_studies", "running"], found["rankwise_queue_length",]) == (0, 0)
    assert found["rankwise_trials_finished_total", "oom", "probe"] == 1
    assert found["rankwise_trials_finished_total", "ok", "train"] == 1
    assert found["rankwise_trial_seconds_count", "ok", "probe"] == 1
    assert found["rankwise_trial_seconds_sum", "ok", "probe"] == 10
    assert found["rankwise_trial_seconds_bucket", "5.0", "ok", "probe"] == 0
    assert found["rankwise_trial_seconds_bucket", "15.0", "ok", "probe"] == 1
    assert found["rankwise_devices_in_use",] == 0
    assert found["process_resident_memory_bytes",] > 0


def test_requests_are_counted_by_route_and_not_by_path(client: TestClient, script: Any) -> None:
    for path in (f"/v1/studies/{script.id}", "/v1/studies/nobody", "/nowhere/1", "/nowhere/2"):
        client.get(path)
    found = read(client)
    assert found["rankwise_http_requests_total", "GET", "/v1/studies/{study_id}", "200"] == 1
    assert found["rankwise_http_requests_total", "GET", "/v1/studies/{study_id}", "404"] == 1
    assert found["rankwise_http_requests_total", "unknown", "unknown", "404"] == 2
    assert found["rankwise_http_request_seconds_count", "GET", "/v1/studies/{study_id}"] == 2


def test_gpus_are_told_with_what_is_known_of_them(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GpuProfile(uuid="GPU-1", index=0, name="H100", total_bytes=2**36, used_bytes=2**30)
    monkeypatch.setattr("rankwise.api.metrics.read_gpus", lambda: ((gpu,), None))
    found = read(client)
    assert found["rankwise_gpu_memory_used_bytes", "H100", "GPU-1"] == 2**30
    assert found["rankwise_gpu_healthy", "H100", "GPU-1"] == 1
    assert ("rankwise_gpu_power_watts", "H100", "GPU-1") not in found


def test_a_server_is_ready_while_its_store_answers_and_studies_are_worked_on(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/readyz").json()["status"] == "ready"

    class Restarting:
        state = SupervisionState.RESTARTING

    app.state.supervision = Restarting()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:rankwise:problem:no-supervisor")
    app.state.supervision = None

    def broken(_: object) -> int:
        raise StoreError("the database is locked")

    monkeypatch.setattr("rankwise.store.counting.Counting.count_devices_in_use", broken)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:rankwise:problem:store-error")
    assert client.get("/healthz").status_code == 200
