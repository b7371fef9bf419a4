"""The check of GPUs, tried on the CPU: the very trials, on a model that takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.sizes import least_bytes
from rankwise.probes.profiles import GpuProfile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
H100 = GpuProfile(
    uuid="GPU-1",
    index=0,
    name="NVIDIA H100 80GB HBM3",
    total_bytes=80 * 2**30,
    free_bytes=79 * 2**30,
    compute_capability=(9, 0),
)


def test_a_dry_run_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    names = ["probes", "trial-ia3", "trial-full-8bit-optimizer", "trial-lora-compile", "killed-trial"]
    command = [sys.executable, BENCHMARKS / "device_check.py", "--dry-cpu", "--only", *names, "--out", out]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    checks = {check["name"]: check for check in report["checks"]}
    assert {name: check["status"] for name, check in checks.items()} == {
        "probes": "skipped",
        "trial-ia3": "ok",
        "trial-full-8bit-optimizer": "ok",
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

    for name in ("trial-ia3", "trial-full-8bit-optimizer"):
        figures = checks[name]["figures"]
        assert figures["estimate"]["peak_tensor_bytes"] == figures["peak_tensor_bytes"]
        assert figures["estimate_errors"] == {"peak_tensor_bytes": 0.0}
        assert figures["estimate"]["by_phase"]["backward"] > figures["least_bytes"]
    tensors = f"{trial['peak_tensor_bytes']:,}"
    assert f"{tensors} / {tensors} +0.00%" in result.stdout


@pytest.fixture
def parts() -> Iterator[Any]:
    """The benchmark's modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from device_checks import bench

        yield bench
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_gpu_is_told_of_in_its_own_terms(parts: Any, tmp_path: Path) -> None:
    """A GPU among the facts is enough for that; there need be none."""
    bench = parts.Bench(tmp_path, (), None, deadline_s=time.monotonic() + 600)
    try:
        prepared = bench.study("tiny")
        wish = parts.Wish(shape="tiny", level={})
        candidate = bench.candidate(prepared, wish)
        facts = replace(prepared.facts, hardware=replace(prepared.facts.hardware, gpus=(H100,)))
        told = bench.estimate(parts.Prepared(prepared.run, facts), candidate)
        compiled = replace(candidate, level=replace(candidate.level, compile=True))
        assert bench.estimate(prepared, compiled) is None
    finally:
        bench.close()
    two_workspaces = 2 * 32 * 2**20  # of cuBLAS, on a Hopper
    least = least_bytes(candidate, facts.model) + two_workspaces
    assert least < told["peak_allocated_bytes"] < told["peak_reserved_bytes"] < told["peak_device_bytes"]
    assert told["tokens_per_s_low"] < told["tokens_per_s"] < told["tokens_per_s_high"]
    assert (told["fits"], told["peak_tensor_bytes"]) == ("yes", None)
