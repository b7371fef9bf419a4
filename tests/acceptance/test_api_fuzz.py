"""The quick form of ``benchmarks/api_fuzz.py``: some hundred requests made from the service's description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "api_fuzz.py"


def test_answers_are_as_described_whatever_is_asked() -> None:
    command = [sys.executable, PROGRAM, "--phases", "fuzzing", "--examples", "6", "--least", "120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
