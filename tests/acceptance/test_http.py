"""``rankwise serve`` as its clients meet it: over a socket, with a real study behind it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rankwise.home import Home

STUDY = {
    "budget": {"seconds": "20s", "max_trials": 2},
    "constraints": {"max_length": 32},
    "methods": ["lora"],
}


@pytest.fixture
def server(home: Home, reviews_csv: Path) -> Iterator[httpx.Client]:
    """A client of a server that may read the test's data and installed packages."""
    roots = (str(reviews_csv.parent), sysconfig.get_path("purelib"))
    command = [str(Path(sys.executable).with_name("rankwise")), "serve", "--port", "0"]
    for root in roots:
        command += ["--allow-root", root]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    with process.stderr:
        try:
            found = re.search(r"http://[\d.:]+", process.stderr.readline())
            assert found is not None
            with httpx.Client(base_url=found[0], timeout=300) as client:
                yield client
        finally:
            process.terminate()
            assert process.wait(timeout=30) in (0, -15)


def test_the_server_comes_up_with_a_supervisor(server: httpx.Client) -> None:
    for _ in range(100):
        health = server.get("/healthz").json()
        if health["supervisor"] == "running":
            break
        time.sleep(0.1)
    assert (health["status"], health["supervisor"]) == ("ok", "running")


def test_strangers_are_turned_away(server: httpx.Client, reviews_csv: Path) -> None:
    assert server.get("/healthz", headers={"Host": "rebound.example"}).status_code == 403
    assert server.post("/v1/studies", json={}, headers={"Origin": "http://evil.example"}).status_code == 403
    outside = {"model": "/etc", "dataset": str(reviews_csv)}
    assert server.post("/v1/studies", json=outside).status_code == 403


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_of_two_mebibytes_is_refused(server: httpx.Client, is_chunked: bool) -> None:
    content = iter([b" " * 2**16] * 32) if is_chunked else b" " * 2**21
    answer = server.post("/v1/studies", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert server.get("/healthz").status_code == 200


def test_a_model_that_is_not_there_is_a_problem(server: httpx.Client, reviews_csv: Path) -> None:
    body = {"model": str(reviews_csv.parent / "no-model"), "dataset": str(reviews_csv)}
    answer = server.post("/v1/studies", json=body)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == "/model"
    assert server.get("/v1/studies").json()["studies"] == []


def test_one_post_that_waits_returns_a_measured_recommendation(
    server: httpx.Client, minilm_path: Path, reviews_csv: Path
) -> None:
    body = {"model": str(minilm_path), "dataset": str(reviews_csv), **STUDY}
    answer = server.post("/v1/studies", json=body, headers={"Prefer": "wait=280"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    trials = server.get(found["links"]["trials"]).json()["trials"]
    assert {trial["outcome"] for trial in trials} == {"ok"}
    assert all(trial["measurement"]["measured_s"] > 0 for trial in trials)
    chosen = next(trial for trial in trials if trial["id"] == found["trial_id"])
    evidence = found["evidence"]  # quality from the training, speed and memory from the probe of its shape
    assert evidence["heldout_loss"] == chosen["measurement"]["heldout_loss"]
    assert evidence["tokens_per_s"] in [trial["measurement"]["tokens_per_s"] for trial in trials]
    assert found["adapter_config"]["peft_type"] == "LORA"
    assert 0 <= found["overhead_share"] <= 1
    assert server.get(answer.headers["Location"]).json()["state"] == "succeeded"
