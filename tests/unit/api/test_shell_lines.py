"""Lines are read by real shells."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.documents import recommendation_of
from rankwise.api.shell_lines import NAMES, PREFIX, STUDY_NAMES, shell_lines, study_lines
from rankwise.optimizer.domain import StudyState

OURS = {"HOME", "URL", "TOKEN", "TOKEN_FILE", "DATABASE_URL", "LOCAL"}
"""Variables that rankwise reads: to evaluate an answer must not turn the next command elsewhere."""


def read_by(shell: str, lines: str) -> dict[str, str]:
    """The variables that a strict shell has after it evaluated the lines."""
    names = " ".join(f'"${{{PREFIX}{name.upper()}}}"' for name in NAMES)
    script = f'set -eu; eval "$1"; printf "%s\\0" {names}'
    done = subprocess.run([shell, "-c", script, shell, lines], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip(NAMES, done.stdout.split("\0"), strict=False))


@pytest.fixture
def document(finished: Any) -> Any:
    return recommendation_of(finished.study, finished.recommendation, None)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_reads_what_was_recommended(document: Any, shell: str) -> None:
    found = read_by(shell, shell_lines(document))
    assert (found["method"], found["rank"], found["targets"]) == ("lora", "16", "query,value")
    assert (found["micro_batch"], found["learning_rate"], found["quantization"]) == ("4", "0.0005", "none")
    assert (found["gradient_checkpointing"], found["rslora"]) == ("0", "0")
    assert (found["gpus"], found["gpu_bytes"], found["cpus"]) == ("0", "", "2")
    assert found["host_gib"] == "5"
    assert found["description"] == document.description


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_what_would_run_is_only_text(document: Any, shell: str, tmp_path: Any) -> None:
    evil = f"'; touch {tmp_path}/ran; $(touch {tmp_path}/ran) `touch {tmp_path}/ran` \"\\\nexit 7 #"
    asked = replace(document.resources, gpu_name=evil)
    found = read_by(shell, shell_lines(document.model_copy(update={"description": evil, "resources": asked})))
    assert (found["description"], found["gpu_name"]) == (evil, evil)
    assert list(tmp_path.iterdir()) == []


def test_every_name_is_written_each_time(document: Any) -> None:
    bare = document.model_copy(update={"resources": None})
    for lines in (shell_lines(document), shell_lines(bare)):
        assert [line.partition("=")[0] for line in lines.splitlines()] == [
            f"{PREFIX}{n.upper()}" for n in NAMES
        ]
    waiting = study_lines("01STUDY", StudyState.QUEUED)
    assert waiting == "RANKWISE_STUDY_ID=01STUDY\nRANKWISE_STATE=queued\n"
    assert list(NAMES)[: len(STUDY_NAMES)] == list(STUDY_NAMES)


def test_no_name_is_one_that_rankwise_reads() -> None:
    assert not OURS & {name.upper() for name in NAMES}


def test_documents_say_what_to_ask_for(document: Any) -> None:
    asked = json.loads(document.model_dump_json())["resources"]
    assert asked["gpus"] == 0
    assert asked["limit_s"] > 0


def test_the_page_of_schedulers_has_every_name() -> None:
    page = (Path(__file__).parents[3] / "docs" / "schedulers.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `RANKWISE_(\w+)` \| (.+) \|$", page, flags=re.MULTILINE)
    assert [(name.lower(), text) for name, text in listed] == list(NAMES.items())
