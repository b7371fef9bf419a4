"""Processor time as the kernel counts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from rankwise.probes.cpu_time import cpu_time, own_time, processes_time


def test_time_of_a_child_that_ended_is_its_parents() -> None:
    # The kernel counts in hundredths of a second and rounds user's and its own time down: so a bit longer.
    code = (
        "import subprocess, sys\n"
        "spin = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "subprocess.run([sys.executable, '-c', spin], check=True)\n"
        "print(flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        spent_s = processes_time([parent.pid])
        parent.kill()
    assert spent_s is not None
    assert spent_s >= 0.4
    assert processes_time([parent.pid]) is None
    assert processes_time([]) is None


def test_time_of_this_process_grows_with_its_work() -> None:
    start_s = own_time()
    while time.process_time() < start_s + 0.1:
        pass
    assert own_time() >= start_s + 0.05


def test_only_usable_processors_count(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  600 60 600 6000 600 60 60 60 0 0\n"
        "cpu0 100 10 100 1000 100 10 10 10 50 5\n"
        "cpu1 200 20 200 2000 200 20 20 20 0 0\n"
        "cpu10 300 30 300 3000 300 30 30 30 0 0\n"
        "intr 1 2 3\n"
    )
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert cpu_time(stat, {1}) == (460 / ticks_per_s, 20 / ticks_per_s)
    assert cpu_time(stat, {0, 10}) == (920 / ticks_per_s, 40 / ticks_per_s)
