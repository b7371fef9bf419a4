"""A model that brings Python code of its own: refused, unless the operator trusts it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.home import Home

RANKWISE = str(Path(sys.executable).with_name("rankwise"))

CODE = """
from transformers import LlamaForCausalLM

class OwnModel(LlamaForCausalLM):
    pass
"""


@pytest.fixture
def own_model(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    shutil.copytree(tiny_llama, folder)
    (folder / "modeling_own.py").write_text(CODE, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def recommend(model: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [RANKWISE, "recommend", "--model", str(model), "--data", str(data), "--json", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("home")
def test_is_refused(own_model: Path, texts_jsonl: Path) -> None:
    result = recommend(own_model, texts_jsonl)
    assert result.returncode == 2
    assert "--allow-remote-code" in result.stderr


def test_runs_when_it_is_allowed(home: Home, own_model: Path, texts_jsonl: Path) -> None:
    result = recommend(
        own_model,
        texts_jsonl,
        "--allow-remote-code",
        "--method",
        "lora",
        "--max-trials",
        "2",
        "--budget",
        "20s",
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["study"]["facts"]["model"]["architecture"] == "OwnModel"
    # Where transformers copies the code to: never into the folder of the user's own token.
    assert list((home.root / "cache" / "huggingface").rglob("modeling_own.py"))
