from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.cli import inspect as command
from rankwise.home import Home

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [
        sys.executable,
        "-c",
        "import sys\nfrom rankwise.api.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules",
        "inspect",
        *arguments,
    ]
    return subprocess.run(program, check=False, capture_output=True, text=True, env=None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    return path


def test_a_bare_configuration_is_inspected_as_json(home: Home, config: Path) -> None:
    done = inspect(str(config), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["task"]["kind"] == "causal-lm"
    model = document["model"]
    assert (model["has_weights"], model["supports_packing"]) == (False, True)
    assert model["attention_kernels"][0] == "sdpa"
    assert document["stored_bytes"] == {}
    assert sum(group["parameters"] for group in document["groups"]) <= model["parameters"]
    full = next(row for row in document["trainable"] if row["method"] == "full")
    assert full["parameters"] == model["parameters"]
    assert list(home.tokens.parent.iterdir()) == [home.tokens], "nothing of the job is left behind"


def test_a_person_reads_it_in_80_columns(
    home: Home, minilm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = inspect(str(minilm_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in (
        "22,713,986",
        "86.6 MiB F32",
        "2 labels",
        "classifier: in no weight file, trained from scratch",
        "lora r=16",
        "query, value",
        "attention_output",
    ):
        assert words in done.stdout, words
    assert "…" not in done.stdout.replace("norms, …", ""), "nothing is cut short"


def test_a_task_that_the_model_has_not_is_refused(home: Home, config: Path) -> None:
    done = inspect(str(config), "--task", "seq2seq")
    assert done.returncode == 2
    assert "a llama model is no encoder-decoder" in done.stderr
    assert "→ pass --task prompt-completion" in done.stderr
    assert list(home.tokens.parent.iterdir()) == [home.tokens]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"auto_map": {"AutoConfig": "config.Config"}}', "brings Python code of its own"),
        ("[1]", "a JSON list, not an object"),
    ],
)
def test_refusals_come_before_anything_slow(
    home: Home, config: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    config.write_text(content)
    done = inspect(str(config))
    assert done.returncode == 2
    assert message in done.stderr
    assert not (home.logs / "warm.log").exists()


def test_a_hub_model_that_cannot_be_had_is_said_in_one_message(home: Home, tmp_path: Path) -> None:
    done = inspect("some-org/some-model")
    assert done.returncode == 2
    assert "its weights are not" in done.stderr
    assert done.stderr.count("error:") == 1
    assert "hf download some-org/some-model" in done.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999_999, "999,999"), (1_000_000, "1 M"), (999_400_000, "999 M"), (8_030_261_248, "8.03 B")],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert command._short(count) == text
