"""Exports over HTTP: the document, and what it answers where there is nothing to hand over."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from rankwise.optimizer.domain import Candidate, Measurement, Rung


def test_a_recommendation_is_handed_over_in_the_words_of_peft(client: TestClient, script: Any) -> None:
    script.play()
    links = client.get(f"/v1/studies/{script.id}").json()["links"]
    document = client.get(f"{links['exports']}/peft").json()

    assert document["format"] == "peft"
    assert document["study_id"] == script.id
    assert document["not_expressible"] == []
    config = json.loads(document["files"]["adapter_config.json"])
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 32)


def test_any_trial_can_be_handed_over(
    client: TestClient, script: Any, candidates: tuple[Candidate, Candidate], trained: Measurement
) -> None:
    script.begin()
    trial = script.run(candidates[1], Rung.TRAIN, trained)
    document = client.get(f"/v1/studies/{script.id}/trials/{trial.id}/exports/accelerate").json()

    assert document["trial_id"] == trial.id
    assert document["candidate"] == candidates[1].describe()
    assert sorted(document["files"]) == ["accelerate.yaml", "train.py"]
    assert yaml.safe_load(document["files"]["accelerate.yaml"])["use_cpu"] is True
    assert document["commands"] == [["accelerate", "launch", "--config_file", "accelerate.yaml", "train.py"]]


def test_a_job_asks_for_what_was_measured(client: TestClient, script: Any, trained: Measurement) -> None:
    script.play()
    text = client.get(f"/v1/studies/{script.id}/exports/slurm").json()["files"]["job.sbatch"]
    reserve_mib = 4 * 1024
    assert f"#SBATCH --mem={441 + reserve_mib}M\n" in text
    assert "--gpus" not in text


def test_what_would_train_something_else_is_refused(client: TestClient, script: Any) -> None:
    script.play()
    answer = client.get(f"/v1/studies/{script.id}/exports/axolotl")
    assert answer.status_code == 422
    assert "text-classification" in answer.json()["detail"]
    assert "transformers" in answer.json()["next_step"]


@pytest.mark.parametrize("path", ["exports/peft", "trials/01K5ZJ9V0M3Q8R7T6Y2X4W1N0B/exports/peft"])
def test_without_a_recommendation_or_a_trial_there_is_nothing(
    client: TestClient, script: Any, path: str
) -> None:
    assert client.get(f"/v1/studies/{script.id}/{path}").status_code == 404


def test_a_trial_is_looked_for_in_its_own_study(client: TestClient, script: Any, candidates: Any) -> None:
    script.begin()
    trial = script.plan(candidates[0], Rung.PROBE)
    other = script.store.create_study(script.request).id
    assert client.get(f"/v1/studies/{other}/trials/{trial.id}/exports/peft").status_code == 404


def test_an_unknown_format_is_refused_with_the_known_ones(client: TestClient, script: Any) -> None:
    script.play()
    answer = client.get(f"/v1/studies/{script.id}/exports/keras")
    assert answer.status_code == 422
    assert "axolotl" in json.dumps(answer.json())
