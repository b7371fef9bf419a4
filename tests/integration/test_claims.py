"""The quick form of ``benchmarks/claims.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "claims.py"


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_trial_is_claimed_once_and_every_study_ends_once(
    backend: str, request: pytest.FixtureRequest
) -> None:
    options = ["--processes", "4", "--trials", "80", "--races", "60"]
    if backend == "postgresql":
        options += ["--url", request.getfixturevalue("empty_postgres_url")]
    done = subprocess.run(
        [sys.executable, PROGRAM, *options], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["claims"]["distinct"] == 80
    assert sum(figures["races"]["ends"].values()) == 60
