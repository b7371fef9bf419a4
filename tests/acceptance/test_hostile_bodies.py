"""The quick form of ``benchmarks/hostile_bodies.py``: strangers' large and slow bodies, on a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "hostile_bodies.py"


def test_large_and_slow_bodies_of_strangers_cost_nothing() -> None:
    command = [sys.executable, PROGRAM, "--mebibytes", "16", "--clients", "2", "--patience", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all refused\n")
