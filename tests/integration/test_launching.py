"""The exported program of a training by several processes, started with the command that is handed over."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import Candidate, Level
from rankwise.optimizer.resources import Resources
from rankwise.optimizer.trainers.formats import launched
from rankwise.optimizer.trainers.settings import Training
from rankwise.optimizer.trainers.writing import deepspeed_config
from rankwise.probes.profiles import TaskKind

from .test_train_script import CANDIDATE, make_values, write_script

LEVELS = {
    "ddp": Level(processes=2),
    "zero-2": Level(processes=2, zero_stage=2),
    "zero-3": Level(processes=2, zero_stage=3),
}


@pytest.fixture(scope="module")
def of_one_process(
    minilm_path: Path, reviews_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the program is given after a trial of one process, with its losses.

    Without dropout, which is drawn for each micro-batch: several processes have others.
    """
    folder = tmp_path_factory.mktemp("model")
    for file in minilm_path.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    candidate = dataclasses.replace(CANDIDATE, adapter=dataclasses.replace(CANDIDATE.adapter, dropout=0.0))
    return make_values(folder, reviews_csv, candidate=candidate)


def launch(
    folder: Path, values: dict[str, Any], level: Level, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Write the program with its files as they are handed over, and start them as they say."""
    alone = from_json(Candidate, values["candidate"])
    candidate = dataclasses.replace(alone, level=level, micro_batch=2)
    values = {**values, "candidate": to_json(candidate), "deepspeed": deepspeed_config(candidate)}
    write_script(folder, values)
    files, command = launched(make_training(candidate, values))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    binaries = Path(sys.executable).parent
    return subprocess.run(
        [binaries / command[0], *command[1:], *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
    )


def make_training(candidate: Any, values: dict[str, Any]) -> Training:
    return Training(
        candidate=candidate,
        task=TaskKind.TEXT_CLASSIFICATION,
        model=values["model"],
        model_revision=None,
        has_weights=True,
        runs_remote_code=False,
        factory=None,
        adapter_config=values["adapter_config"],
        classes=2,
        total_steps=100,
        seed=values["seed"],
        on_cpu=True,
        gpu_name=None,
        resources=Resources(gpus=0, cpus=2, host_bytes=2**34, limit_s=3600),
        study_id="01J0000000000000000000TEST",
        libraries={},
    )


@pytest.mark.parametrize("name", LEVELS)
def test_the_command_repeats_the_losses(tmp_path: Path, of_one_process: dict[str, Any], name: str) -> None:
    result = launch(tmp_path, of_one_process, LEVELS[name], "--verify")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "losses the same as measured" in result.stdout
    steps = len(of_one_process["trial"]["first_losses"])
    assert result.stdout.count("step ") == steps, "one process speaks for all"


def test_what_was_divided_is_saved_whole(tmp_path: Path, of_one_process: dict[str, Any]) -> None:
    result = launch(tmp_path, of_one_process, LEVELS["zero-3"], "--max-steps", "2", "--out", "trained")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the tensors that were measured" in result.stdout
    assert PeftConfig.from_pretrained(tmp_path / "trained").r == CANDIDATE.adapter.rank
    assert json.loads((tmp_path / "trained" / "labels.json").read_text()) == ["negative", "positive"]
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "trained" / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in saved.items())
    assert any("classifier" in name for name in saved)


def test_started_alone_it_says_how_to_start_it(tmp_path: Path, of_one_process: dict[str, Any]) -> None:
    candidate = dataclasses.replace(CANDIDATE, level=LEVELS["ddp"], micro_batch=2)
    script = write_script(tmp_path, {**of_one_process, "candidate": to_json(candidate)})
    result = subprocess.run(
        [sys.executable, "-I", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "torchrun --nproc_per_node 2" in result.stderr
