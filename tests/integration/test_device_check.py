"""The check of GPUs, tried on the CPU: the very trials, on a model that takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device_check.py"


def test_a_dry_run_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    names = ["probes", "trial-ia3", "trial-lora-compile", "killed-trial"]
    command = [sys.executable, SCRIPT, "--dry-cpu", "--only", *names, "--out", out]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    checks = {check["name"]: check for check in report["checks"]}
    assert {name: check["status"] for name, check in checks.items()} == {
        "probes": "skipped",
        "trial-ia3": "ok",
        "trial-lora-compile": "skipped",
        "killed-trial": "ok",
    }
    assert checks["probes"]["reason"] == "needs a GPU"
    assert "On a CPU compiling takes longer" in checks["trial-lora-compile"]["reason"]
    assert checks["killed-trial"]["figures"]["outcome"] == "lost"
    assert {"torch", "transformers", "peft"} <= report["libraries"].keys()

    trial = checks["trial-ia3"]["figures"]
    low, high = trial["tokens_per_s_interval_95"]
    assert low < trial["tokens_per_s"] < high
    assert trial["peak_tensor_bytes"] > trial["least_bytes"]
    # IA3 scales keys, values and the 128 inputs of each of the two down projections.
    assert trial["trainable_params"] == 2 * (32 + 32 + 128)
    # No GPU was used, so nothing is known of its memory.
    assert trial["peak_allocated_bytes"] is trial["peak_reserved_bytes"] is trial["peak_device_bytes"] is None
