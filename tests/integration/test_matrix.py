"""Cells in which each value of each setting occurs: what the level factory makes is built and trained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 840.0
"""Of a machine that others use too: alone it takes less than a minute, beside a load of twelve over four."""


@pytest.mark.timeout(PATIENCE_S + 60)
def test_nothing_that_the_factory_makes_is_refused_or_fails(
    minilm_path: Path, reviews_csv: Path, tiny_llama: Path, texts_jsonl: Path, tmp_path: Path
) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks" / "matrix.py", "--quick", "--folder", tmp_path]
    command += ["--model", minilm_path, reviews_csv, "--model", tiny_llama, texts_jsonl]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    table = done.stdout
    assert done.returncode == 0, table + done.stderr
    lines = re.findall(r"^ *(\d+)  ([^:\n]+)$", table, re.MULTILINE)
    totals = {words: int(number) for number, words in lines}
    cells = totals.pop("cells")
    assert cells > 15, table
    assert totals.pop("ok") == cells
    assert totals.pop("made by the factory, then refused by a library") == 0
    assert totals.pop("failed in a step, a check or the evaluation") == 0
    assert [words for words in totals if words.startswith("refused by ")], table
    for setting in ("packed", "int8", "nf4+double", "fp4", "checkpointing", "chunked", "adalora", "dora"):
        assert setting in table
