from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from rankwise.runners.build import InvalidTrial
from rankwise.runners.trial.judge import own_metric


def judged(folder: Path, script: str, *, limit_s: float = 30.0) -> float:
    return own_metric([sys.executable, "-c", script], folder, limit_s=limit_s)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trained").mkdir()
    return tmp_path / "trained"


def test_the_last_line_is_the_number(folder: Path) -> None:
    assert judged(folder, "print('loading'); print(3); print(' -1.5e-2 '); print()") == -0.015


def test_the_folder_comes_last_and_no_shell_reads_it(folder: Path) -> None:
    script = "import os, sys; print(float(sys.argv[-2:] == ['$HOME;', os.path.join(os.getcwd(), 'trained')]))"
    assert own_metric([sys.executable, "-c", script, "$HOME;"], folder, limit_s=30.0) == 1.0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; print(1); sys.exit(3)", r"`.*python.* -c .*` ended with exit code 3$"),
        ("raise KeyError('rows')", r"ended with exit code 1: Traceback .* / .*KeyError: 'rows'$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("print('0.5 %')", "exit code 0, and its last line is '0.5 %', which is no finite number"),
        ("print('nan')", "its last line is 'nan', which is no finite number"),
        ("print('inf')", "its last line is 'inf', which is no finite number"),
        ("import sys; sys.stderr.write('no GPU')", "its last line is nothing: no GPU"),
        ("print('x' * 10**6)", "its last line is 'x{100}',"),
    ],
)
def test_what_gives_no_number_says_why(folder: Path, script: str, reason: str) -> None:
    with pytest.raises(InvalidTrial, match=reason):
        judged(folder, script)


def test_a_command_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InvalidTrial, match="cannot be started: No such file"):
        own_metric(["/no/such/program"], folder, limit_s=30.0)


def test_one_that_takes_too_long_is_ended_with_all_that_it_began(folder: Path) -> None:
    script = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; "
        "time.sleep(600)']); open('child', 'w').write(str(child.pid)); time.sleep(600)"
    )
    with pytest.raises(InvalidTrial, match="took longer than 2 s, and was ended"):
        judged(folder, script, limit_s=2.0)
    child = Path("/proc", (folder.parent / "child").read_text())
    deadline_s = time.monotonic() + 10
    while child.exists() and " Z " not in (child / "stat").read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_one_that_prints_without_end_fills_no_disk(folder: Path) -> None:
    """200 MB, where a process may write no file of more than one."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); "
        "line = 'x' * 99 + '\\n'; [sys.stdout.write(line * 10**4) for _ in range(200)]; print(0.25)"
    )
    assert judged(folder, script) == 0.25
