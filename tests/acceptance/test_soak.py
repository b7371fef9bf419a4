"""The quick form of the soak: a few random kills, and everything that it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_studies_survive_random_kills(tiny_llama: Path, texts_jsonl: Path) -> None:
    command = [sys.executable, PROGRAM, "--kills", "4", "--model", tiny_llama, "--data", texts_jsonl]
    soaked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert soaked.returncode == 0, soaked.stdout + soaked.stderr
    figures = json.loads(soaked.stdout)
    assert sum(figures["kills"].values()) == 4
    assert figures["problems"] == []
    assert figures["studies"]
