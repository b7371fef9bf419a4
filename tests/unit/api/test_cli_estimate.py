from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rankwise.api import estimates
from rankwise.api.cli import estimate as command
from rankwise.api.cli.main import app
from rankwise.api.submission import InvalidRequest
from rankwise.home import Home

GIB = 2**30


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"}))
    return str(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, home: Home, dry_run) -> list[dict[str, Any]]:
    """Lets the scripted dry run answer in place of the job; collects what the job was given."""
    given: list[dict[str, Any]] = []

    def estimate_once(home: Home, source: str, settings: Any, terms: Any, **options: Any) -> Any:
        given.append({"home": home, "source": source, "settings": settings, **options})
        return dry_run(terms, options["enough"])

    monkeypatch.setattr(estimates, "estimate_once", estimate_once)
    monkeypatch.setenv("COLUMNS", "80")
    return given


def test_every_option_reaches_the_job(config: str, asked) -> None:
    arguments = (
        "--task causal-lm --method adalora --rank 8 --alpha 12 --targets q_proj,v_proj --quantization nf4 "
        "--double-quantization --precision fp16 --no-gradient-checkpointing --attention eager --loss chunked "
        "--optimizer adamw_8bit --batch-size 4 --gradient-accumulation 2 --seq-len 4096 --padded "
        "--zero-stage 2 --offload optimizer --gpus 4 --allow-remote-code"
    )
    done = CliRunner().invoke(app, ["estimate", config, *arguments.split()])
    assert done.exit_code == 0, done.output
    (job,) = asked
    settings = job["settings"]
    assert (job["source"], job["task"], job["allow_remote_code"]) == (config, "causal-lm", True)
    assert (settings.method, settings.rank, settings.alpha) == ("adalora", 8, 12.0)
    assert (settings.targets, settings.quantization) == ("q_proj,v_proj", "nf4")
    assert (settings.double_quantization, settings.precision) == (True, "fp16")
    assert (settings.gradient_checkpointing, settings.attention) == (False, "eager")
    assert (settings.loss, settings.optimizer) == ("chunked", "adamw_8bit")
    assert (settings.micro_batch, settings.accumulation, settings.length) == (4, 2, 4096)
    assert (settings.padded, settings.packed) == (True, False)
    assert (settings.zero_stage, settings.offload, settings.gpus) == (2, "optimizer", 4)


@pytest.mark.parametrize(
    ("arguments", "code", "first"),
    [
        ([], 0, "Needs 12."),
        (["--gpu", "A100-80GB"], 0, "Fits on A100 SXM 80GB: 12."),
        (["--memory-limit", "12.5GiB"], 4, "Too close to call: 12."),
        (["--memory-limit", "6GiB"], 3, "Does not fit: 12."),
        (["--which-gpu"], 0, "Fits on "),
    ],
)
def test_the_verdict_comes_first_and_decides_the_exit_code(
    config: str, asked, arguments: list[str], code: int, first: str
) -> None:
    done = CliRunner().invoke(app, ["estimate", config, *arguments])
    assert (done.exit_code, done.stderr) == (code, "")
    assert done.stdout.startswith(first)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_no_gpu_for_it_is_code_3(config: str, asked, dry_run) -> None:
    dry_run.allocated_bytes = dry_run.reserved_bytes = 500 * GIB
    done = CliRunner().invoke(app, ["estimate", config, "--which-gpu"])
    assert done.exit_code == 3
    assert done.stdout.startswith("Does not fit on MI325X 256GB")


def test_a_person_sees_bars_and_gpus(config: str, asked) -> None:
    done = CliRunner().invoke(
        app, ["estimate", config, "--which-gpu", "--tokens", "1000000", "--epochs", "2"]
    )
    lines = done.stdout.splitlines()
    bars = {line.split("  ")[0]: line.count("█") for line in lines if "█" in line}
    assert bars["base weights"] == command.BAR_WIDTH
    assert bars["activations"] == command.BAR_WIDTH // 3
    assert bars["build"] == command.BAR_WIDTH // 2
    assert any(line.startswith("unused by allocator     2 GiB") for line in lines)
    table = next(number for number, line in enumerate(lines) if line.startswith("fits on"))
    assert lines[table].split() == ["fits", "on", "memory", "batch", "tokens/s", "takes"]
    assert all("GiB" in line and line.endswith((" h", " min")) for line in lines[table + 1 : table + 5])
    assert "…" not in done.stdout


def test_json_is_the_document_and_nothing_else(config: str, asked) -> None:
    done = CliRunner().invoke(app, ["estimate", config, "--memory-limit", "24GiB", "--json"])
    document = json.loads(done.stdout)
    assert (document["schema_version"], document["fits"]) == (1, "yes")
    assert document["capacity_bytes"] == 24 * GIB
    for name in ("peak_allocated_bytes", "peak_reserved_bytes", "device_bytes"):
        assert document[f"{name}_low"] <= document[name] <= document[f"{name}_high"]
    for name in ("phases", "breakdown", "max_micro_batch", "max_seq_len", "tokens_per_second"):
        assert name in document
    assert document["trainable_params"] >= 0
    assert document["seconds_spent"] > 0
    assert document["stack"]["transformers"]


def test_several_misuses_are_told_at_once_and_nothing_is_started(tmp_path: Path, asked) -> None:
    done = CliRunner().invoke(
        app, ["estimate", str(tmp_path), "--batch-size", "0", "--memory-limit", "24GX", "--gpu", "B9000"]
    )
    assert isinstance(done.exception, InvalidRequest)
    assert [problem.field for problem in done.exception.problems] == [
        "model",
        "gpu",
        "memory_limit",
        "batch_size",
    ]
    assert asked == []


def test_misuse_is_answered_without_torch(home: Home, config: str) -> None:
    program = (
        "import sys\nfrom rankwise.api.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "estimate", config, "--memory-limit", "24", "--batch-size", "0"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: size '24' has no unit",
        "  → write 24GiB or 24MiB",
        "error: batch size 0 is not between 1 and 65536",
        "  → give a usual value",
    ]
    assert not list(home.logs.iterdir())


@pytest.mark.parametrize(
    ("share", "text"), [(0, ""), (1e-9, "▏"), (0.5, "█" * 4), (0.5 + 1 / 16, "█" * 4 + "▌"), (1, "█" * 8)]
)
def test_bars_are_exact_to_an_eighth(share: float, text: str) -> None:
    assert command.bar(share, width=8) == text
