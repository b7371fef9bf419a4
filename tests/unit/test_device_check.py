"""The check of GPUs where there is none, and where only the driver's library is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def device_check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    return subprocess.run(
        [sys.executable, BENCHMARKS / "device_check.py", *arguments],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def written_results() -> set[Path]:
    """All files of figures."""
    return set((BENCHMARKS / "results").glob("*"))


def test_without_a_gpu_it_says_so_and_checks_nothing() -> None:
    before = written_results()
    result = device_check(CUDA_VISIBLE_DEVICES="-1")
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith("no CUDA GPU, nothing was checked: ")
    assert written_results() == before


def test_devices_that_cuda_does_not_know_fail_the_check(fake_driver: Path) -> None:
    """The driver's library is a fake: it lists devices that no CUDA program can use."""
    before = written_results()
    result = device_check("--only", "probes", "trial-lora", LD_LIBRARY_PATH=str(fake_driver))
    assert result.returncode == 1, result.stderr
    probes, trial = (line for line in result.stdout.splitlines() if line.startswith("failed"))
    assert "CUDA_VISIBLE_DEVICES=GPU-small" in probes
    assert "where NVML lists Fake Big 80GB" in trial
    assert written_results() == before


def test_an_unknown_check_is_refused() -> None:
    result = device_check("--only", "nonsense")
    assert result.returncode == 2
    assert "oom-on-device" in result.stderr
