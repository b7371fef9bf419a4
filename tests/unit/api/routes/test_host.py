from __future__ import annotations

from starlette.testclient import TestClient

from rankwise import __version__


def test_hardware_is_read_when_asked_for(client: TestClient) -> None:
    answer = client.get("/v1/hardware")
    assert answer.status_code == 200
    hardware = answer.json()
    assert hardware["schema_version"] == 1
    assert hardware["host"]["ram_total_bytes"] > 0
    assert hardware["gpus"] or hardware["gpu_note"]


def test_health_says_whether_studies_are_worked_on(client: TestClient) -> None:
    health = client.get("/healthz").json()
    assert health == {"schema_version": 1, "status": "ok", "version": __version__, "supervisor": "off"}
