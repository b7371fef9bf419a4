"""``rankwise export``, on a study that is scripted through a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.domain import Measurement, Outcome, Rung

Run = Callable[..., Any]


def test_files_go_into_a_folder_named_like_the_format(
    run: Run, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.play()
    monkeypatch.chdir(tmp_path)
    result = run("export", script.id, "--format", "accelerate")

    assert result.code == 0
    found = sorted(path.name for path in (tmp_path / "accelerate").iterdir())
    assert found == ["accelerate.yaml", "adapter_config.json", "train.py"]
    assert "LORA r=16" in result.out
    assert "accelerate launch --config_file accelerate.yaml train.py" in result.out


def test_a_trial_is_exported_by_its_own_id(
    run: Run, script: Any, trained: Measurement, tmp_path: Path
) -> None:
    script.begin()
    trial = script.run(script.candidate(learning_rate=1e-3), Rung.TRAIN, trained)
    result = run("export", trial.id, "--format", "transformers", "--out", str(tmp_path / "out"))

    assert result.code == 0
    arguments = json.loads((tmp_path / "out" / "training_args.json").read_text())
    assert arguments["learning_rate"] == 1e-3


def test_json_is_the_document_of_the_api_and_writes_only_if_asked(
    run: Run, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.play()
    monkeypatch.chdir(tmp_path)
    document = run("export", script.id, "--format", "peft", "--json").document
    assert (document["format"], document["written"]) == ("peft", [])
    assert list(tmp_path.glob("*/adapter_config.json")) == []

    document = run("export", script.id, "--format", "peft", "--json", "--out", "here").document
    assert document["written"] == ["here/adapter_config.json"]
    assert (tmp_path / "here" / "adapter_config.json").exists()


def test_a_refusal_writes_nothing_and_names_another_format(run: Run, script: Any, tmp_path: Path) -> None:
    script.play()
    result = run("export", script.id, "--format", "axolotl", "--out", str(tmp_path / "out"))
    assert result.code == 2
    assert "text-classification" in result.err
    assert "transformers" in result.err
    assert not (tmp_path / "out").exists()


def test_a_trial_that_measured_nothing_is_refused(run: Run, script: Any, tmp_path: Path) -> None:
    script.begin()
    trial = script.fail_trial(script.candidate(learning_rate=1e-4), Outcome.OOM, "CUDA out of memory.")
    result = run("export", trial.id, "--format", "peft", "--out", str(tmp_path / "out"))
    assert result.code == 2
    assert "ended with oom, and measured nothing" in result.err
    assert not (tmp_path / "out").exists()


def test_a_trial_that_failed_after_it_was_measured_is_exported_with_a_warning(
    run: Run, script: Any, trained: Measurement, tmp_path: Path
) -> None:
    script.begin()
    claim = script.start(script.candidate(learning_rate=1e-4), Rung.TRAIN)
    trial = script.store.finish_attempt(
        claim, outcome=Outcome.DIVERGED, reason="The loss is nan.", measurement=trained, wall_s=9.0
    )
    asked = ("export", trial.id, "--format", "peft", "--out", str(tmp_path / "out"))
    assert "ended with diverged: The loss is nan." in run(*asked).err
    assert "ended with diverged" in run(*asked, "--json").document["warnings"][0]


def test_bad_names_are_told_apart(run: Run, script: Any) -> None:
    script.play()
    assert "there is no format 'keras'" in run("export", script.id, "--format", "keras").err
    assert "no study and no trial nobody" in run("export", "nobody", "--format", "peft").err


def test_a_file_in_the_way_of_the_folder_is_bad_input(run: Run, script: Any, tmp_path: Path) -> None:
    script.play()
    (tmp_path / "out").write_text("")
    result = run("export", script.id, "--format", "peft", "--out", str(tmp_path / "out"))
    assert (result.code, "cannot write to" in result.err) == (2, True)
