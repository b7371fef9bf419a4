"""The quick form of ``benchmarks/api_load.py``: the same questions, of few trials, and no time is judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "api_load.py"


def test_reads_are_answered_and_keys_make_one_study_each(tmp_path: Path) -> None:
    options = ["--trials", "400", "--rate", "40", "--seconds", "3", "--posts", "200", "--untimed"]
    command = [sys.executable, PROGRAM, "--home", tmp_path / "home", *options]
    for _ in range(2):  # what is stored can be used again
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "torch imported: False" in done.stdout
        assert "200 POSTs with 20 keys: 20 studies" in done.stdout
