"""The exported train.py, run as a user would: it repeats what was measured, or says so, and it resumes.

The first losses come from a real trial in this process's own loop; the script is a file of its own.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe
from rankwise.optimizer.keys import derive_seed
from rankwise.probes.rows import read_rows
from rankwise.runners.build import load_tokenizer, trainable_sha256
from rankwise.runners.ready_files import compose_script
from rankwise.runners.recipe import Example, encode, is_heldout, step_rows, usable_row
from rankwise.runners.trial.loop import open_session, run_steps

STEPS = 20
TASK = {
    "kind": "text-classification",
    "text_column": "text",
    "label_column": "label",
    "labels": ["negative", "positive"],
}
SPLIT = {"seed": 0, "share": 0.1}
CANDIDATE = Candidate(
    adapter=Adapter(
        method=Method.LORA,
        rank=4,
        alpha=8,
        dropout=0.1,
        targets=("query", "value"),
        trained_modules=("classifier",),
    ),
    level=Level(),
    recipe=Recipe(max_length=32, effective_batch=8, epochs=1),
    micro_batch=8,
    learning_rate=1e-2,
)


def measure(model: Path, data: Path) -> dict[str, Any]:
    """What a trial would have recorded."""
    tokenizer = load_tokenizer(str(model))
    form = to_json(CANDIDATE)
    rows: list[Example] = []
    for row in read_rows(data):
        found = usable_row(row, TASK)
        assert found is not None
        if not is_heldout(found[0], **SPLIT):
            rows.append(encode(*found, tokenizer=tokenizer, task=TASK, recipe=form["recipe"])[0])
    session = open_session(
        str(model),
        task=TASK,
        candidate=form,
        pad_id=tokenizer.pad_token_id,
        seed=derive_seed(0, "model"),
        total_steps=STEPS,
        on_cpu=True,
    )
    order = step_rows(len(rows), effective_batch=8, seed=derive_seed(0, "order"))
    return {
        "steps": STEPS,
        "first_losses": [step.loss for step in run_steps(session, rows, order, last=STEPS)],
        "trainable_sha256": trainable_sha256(session.model),
    }


@pytest.fixture(scope="module")
def values(minilm_path: Path, reviews_csv: Path) -> dict[str, Any]:
    return {
        "description": "a test",
        "model": str(minilm_path),
        "dataset": str(reviews_csv),
        "task": TASK,
        "candidate": to_json(CANDIDATE),
        "seed": derive_seed(0, "model"),
        "order_seed": derive_seed(0, "order"),
        "split": SPLIT,
        "trust_remote_code": False,
        "on_cpu": True,
        "checkpoint_every": 1000,
        "trial": measure(minilm_path, reviews_csv),
    }


def write_script(folder: Path, values: dict[str, Any]) -> Path:
    script = folder / "train.py"
    script.write_text(compose_script(values), encoding="utf-8")
    return script


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Isolated from this repository: what it needs must be in the file or in public packages.
    command = [sys.executable, "-I", str(script), *arguments]
    return subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)


def test_repeats_the_measured_losses(tmp_path: Path, values: dict[str, Any]) -> None:
    script = write_script(tmp_path, values)
    assert "rankwise." not in script.read_text(encoding="utf-8")
    result = run_script(script, "--verify")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("step ") == STEPS


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": {"rank": 8}},
        {"adapter": {"targets": ["key", "value"]}},
        {"adapter": {"alpha": 16.0}},
        {"learning_rate": 8e-3},
    ],
    ids=["rank", "targets", "alpha", "rate"],
)
def test_notices_a_changed_candidate(tmp_path: Path, values: dict[str, Any], change: dict[str, Any]) -> None:
    candidate = json.loads(json.dumps(values["candidate"]))
    for name, value in change.items():
        candidate[name] = {**candidate[name], **value} if isinstance(value, dict) else value
    result = run_script(write_script(tmp_path, {**values, "candidate": candidate}), "--verify")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "NOT the same" in result.stdout


def read_log(path: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, path.read_text().splitlines())}


def test_resumes_to_the_same_losses_after_sigterm(tmp_path: Path, values: dict[str, Any]) -> None:
    script = write_script(tmp_path, values)
    whole = run_script(script, "--out", "whole", "--log", "whole.jsonl")
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, str(script), "--out", "parts", "--log", "parts.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGTERM)
            break
    assert process.wait(timeout=60) == 143
    process.stdout.close()
    done = len(read_log(tmp_path / "parts.jsonl"))
    assert 5 <= done < len(read_log(tmp_path / "whole.jsonl")), "it should have stopped in mid-run"

    resumed = run_script(script, "--out", "parts", "--log", "parts.jsonl", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert read_log(tmp_path / "parts.jsonl") == pytest.approx(read_log(tmp_path / "whole.jsonl"), abs=1e-6)
    heldout = [re.findall(r"held-out loss .*", output)[0] for output in (whole.stdout, resumed.stdout)]
    assert heldout[0] == heldout[1]
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in second.items()
    }
    assert all(value.allclose(second[name], atol=1e-6) for name, value in first.items())
