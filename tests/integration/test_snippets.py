"""The short texts for one's own code: they run, and train what the recommendation trains."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.resources import Resources
from rankwise.optimizer.trainers.settings import Training
from rankwise.optimizer.trainers.snippets import can_be_shown, lightning_snippet, pytorch_snippet
from rankwise.probes.profiles import TaskKind

LORA = Adapter(
    method=Method.LORA, rank=4, alpha=8.0, targets=("query", "value"), trained_modules=("classifier",)
)
LAST_BLOCK = Adapter(
    method=Method.LAST_BLOCKS, unfrozen=("encoder.layer.5",), last_blocks=1, trained_modules=("classifier",)
)
RECIPE = Recipe(max_length=64, effective_batch=4)
CANDIDATE = Candidate(adapter=LORA, level=Level(), recipe=RECIPE, micro_batch=2, learning_rate=1e-3)
AMP = Level(compute_dtype="bfloat16")


def make_training(
    model: str, candidate: Candidate, task: TaskKind = TaskKind.TEXT_CLASSIFICATION
) -> Training:
    return Training(
        candidate=candidate,
        task=task,
        model=model,
        model_revision=None,
        has_weights=True,
        runs_remote_code=False,
        factory=None,
        adapter_config=adapter_config(candidate, task_kind=task, base_model=model, total_steps=3),
        classes=2,
        total_steps=3,
        seed=7,
        on_cpu=True,
        gpu_name=None,
        resources=Resources(gpus=0, cpus=2, host_bytes=2**34, limit_s=3600),
        study_id="01STUDY",
        libraries={},
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared rows, in the folder that the snippet runs in."""
    (tmp_path / "data").mkdir()
    rows = [
        {
            "input_ids": [101, *range(2000, 2003 + n % 3), 102],
            "attention_mask": [1] * (5 + n % 3),
            "labels": n % 2,
        }
        for n in range(12)
    ]
    (tmp_path / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_snippet(folder: Path, training: Training, make: Callable[[Training], str]) -> dict[str, Any]:
    if training.adapter_config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(training.adapter_config))
    (folder / "snippet.py").write_text(make(training))
    return runpy.run_path(str(folder / "snippet.py"))


@pytest.mark.parametrize(
    "candidate",
    [
        CANDIDATE,
        replace(CANDIDATE, level=AMP, adapter=replace(LORA, use_dora=True)),
        replace(CANDIDATE, level=replace(AMP, quantization=Quantization.NF4, gradient_checkpointing=True)),
        replace(CANDIDATE, adapter=LAST_BLOCK),
        replace(CANDIDATE, adapter=Adapter(method=Method.FULL)),
    ],
    ids=["lora", "dora", "nf4", "last block", "full"],
)
def test_a_plain_loop_trains_what_was_recommended(
    folder: Path, minilm_path: Path, capsys: pytest.CaptureFixture[str], candidate: Candidate
) -> None:
    training = make_training(str(minilm_path), candidate)
    done = run_snippet(folder, training, pytorch_snippet)

    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 3
    assert all(0 < loss < 2 for loss in losses)
    names = [name for name, parameter in done["model"].named_parameters() if parameter.requires_grad]
    wanted = {
        Method.LORA: ("lora_", "classifier"),
        Method.LAST_BLOCKS: ("layer.5.", "classifier"),
        Method.FULL: ("",),
    }[candidate.adapter.method]
    assert all(any(part in name for part in wanted) for name in names)
    assert any("classifier" in name for name in names)
    assert (folder / "trained").is_dir()


def test_lightning_trains_it_as_well(folder: Path, minilm_path: Path) -> None:
    pytest.importorskip("lightning")
    training = make_training(str(minilm_path), CANDIDATE)
    (folder / "adapter_config.json").write_text(json.dumps(training.adapter_config))
    (folder / "snippet.py").write_text(lightning_snippet(training))
    # In a process of its own, as it is meant to run: Lightning warns of much in others.
    done = subprocess.run(
        [sys.executable, "snippet.py"], check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "`max_steps=3` reached" in done.stderr
    assert (folder / "trained" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("task", [TaskKind.CAUSAL_LM, TaskKind.SEQ2SEQ, TaskKind.REGRESSION])
@pytest.mark.parametrize("packing", [False, True])
def test_any_text_task_is_valid_python(task: TaskKind, packing: bool) -> None:
    candidate = replace(CANDIDATE, recipe=replace(RECIPE, packing=packing))
    training = make_training('it\'s "a" model', candidate, task)
    for make in (pytorch_snippet, lightning_snippet):
        assert 'it\'s "a" model' in {
            node.value for node in ast.walk(ast.parse(make(training))) if isinstance(node, ast.Constant)
        }


def test_what_takes_more_than_a_few_lines_has_no_snippet() -> None:
    training = make_training("model", CANDIDATE)
    pruned = replace(CANDIDATE, adapter=Adapter(method=Method.ADALORA, rank=4, initial_rank=6, alpha=8.0))
    assert can_be_shown(training)
    assert not can_be_shown(replace(training, candidate=pruned))
    assert not can_be_shown(replace(training, task=TaskKind.IMAGE_CLASSIFICATION))
    assert not can_be_shown(replace(training, factory="package:make"))
