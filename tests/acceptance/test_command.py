"""The installed command, from model and data to a recommendation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.home import Home


def rankwise(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the console script that stands beside this interpreter."""
    command = [Path(sys.executable).with_name("rankwise"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


def test_a_recommendation_is_made_of_trials_measured_in_this_run(
    home: Home, minilm_path: Path, reviews_csv: Path, tmp_path: Path
):
    out = tmp_path / "tuned"
    arguments = ["--budget", "40s", "--max-trials", "4", "--json", "--out", out]

    done = rankwise("recommend", "--model", minilm_path, "--data", reviews_csv, *arguments)

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    best, trials = document["recommendation"], document["trials"]
    assert document["study"]["state"] == "succeeded"
    assert 1 <= len(trials) <= 4
    measured = {trial["id"]: trial for trial in trials if trial["outcome"] == "ok"}
    assert {scored["trial_id"] for scored in best["ranking"]} <= measured.keys()
    for trial in measured.values():
        assert trial["attempts"] <= 2  # one that other work on the machine disturbed is repeated once
        assert trial["measurement"]["measured_s"] > 0
        if trial["rung"] == "probe":
            told = trial["estimate"]["peak_tensor_bytes"]
            assert told == pytest.approx(trial["measurement"]["peak_tensor_bytes"], rel=0.001)
    # Speed is measured by probes, loss by trainings.
    chosen, evidence = measured[best["trial_id"]], best["evidence"]
    assert best["candidate"] == chosen["candidate"]
    assert evidence["tokens_per_s"] in {trial["measurement"]["tokens_per_s"] for trial in measured.values()}
    assert evidence["tokens_per_s"] > 0
    assert evidence["heldout_loss"] == chosen["measurement"]["heldout_loss"]
    assert best["reasons"]
    assert 0 < best["overhead_share"] < 1

    # Progress was told on standard error, one line for each trial's start and one for its end.
    for trial in trials:
        assert f"trial {trial['number']} {trial['rung']}: {trial['description']}" in done.stderr
    assert sorted(document["files"]) == sorted(str(path) for path in out.iterdir())

    # The study is kept, and shown again without being run again.
    study_id = document["study"]["id"]
    again = rankwise("studies", "show", study_id)
    assert again.returncode == 0
    assert "Recommended: " in again.stdout
    resumed = rankwise("recommend", "--resume", study_id, "--json")
    assert json.loads(resumed.stdout) == {**document, "files": []}


def test_a_plan_runs_nothing(home: Home, minilm_path: Path, reviews_csv: Path, tmp_path: Path):
    out = tmp_path / "tuned"
    data = ("--model", minilm_path, "--data", reviews_csv)
    done = rankwise("recommend", *data, "--plan", "--json", "--out", out)

    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert 1 < plan["max_trials"] <= plan["request"]["max_trials"]
    assert plan["max_trials"] <= plan["max_probes"] + plan["max_trainings"]
    by_id = {candidate["id"]: candidate for candidate in plan["candidates"]}
    assert 1 < len(plan["first_trials"]) <= plan["max_trials"]
    assert all(trial["candidate_id"] in by_id and trial["purpose"] for trial in plan["first_trials"])
    assert not out.exists()
    assert {each["rule"] for each in plan["left_out"]} >= {"flash-attention", "paged-without-gpu"}
    assert plan["bytes_read"] > reviews_csv.stat().st_size
    assert json.loads(rankwise("studies", "list", "--json").stdout)["studies"] == []


def test_a_limit_that_nothing_can_meet_exits_with_3(home: Home, minilm_path: Path, reviews_csv: Path):
    done = rankwise("recommend", "--model", minilm_path, "--data", reviews_csv, "--memory-limit", "4MiB")

    assert done.returncode == 3
    assert "error: no configuration of" in done.stderr
    assert "raise the memory limit" in done.stderr


OWN_LORA = """
lora:
  r: 2
  target_modules: [query, value]
  r_last_layers: 4
only_presets: true
max_trials: 2
budget: 20m
"""


def test_a_terminated_study_says_how_to_go_on_and_does(
    home: Home, minilm_path: Path, reviews_csv: Path, tmp_path: Path
):
    """One from a study file, of a LoRA of one's own."""
    study = tmp_path / "study.yaml"
    assert rankwise("init", study, "--model", minilm_path, "--data", reviews_csv).returncode == 0
    study.write_text(study.read_text() + OWN_LORA)
    command = [Path(sys.executable).with_name("rankwise"), "recommend"]
    options = ["--config", study, "--budget", "20s"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "trial 1" not in process.stderr.readline():
            pass
        process.terminate()
        rest = process.stderr.read()

    assert process.returncode == 143
    [resume] = re.findall(r"rankwise (recommend --resume \w+)", rest)
    done = rankwise(*resume.split(), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["study"]["state"] == "succeeded"
    assert document["study"]["request"]["budget"]["seconds"] == 20.0
    adapter = document["recommendation"]["candidate"]["adapter"]
    assert (adapter["rank"], adapter["targets"]) == (2, ["query", "value"])
    assert [rank for _, rank in adapter["rank_pattern"]] == [4]
    for trial in document["trials"]:
        if trial["rung"] == "probe":
            told = trial["estimate"]["peak_tensor_bytes"]
            assert told == pytest.approx(trial["measurement"]["peak_tensor_bytes"], rel=0.001)


def test_a_model_without_its_tokenizer_is_refused(
    home: Home, minilm_path: Path, reviews_csv: Path, tmp_path: Path
) -> None:
    model = tmp_path / "bare"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(minilm_path / name)
    command = [str(Path(sys.executable).with_name("rankwise")), "recommend", "--model", str(model)]
    result = subprocess.run(
        [*command, "--data", str(reviews_csv)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "tokenizer" in result.stderr
