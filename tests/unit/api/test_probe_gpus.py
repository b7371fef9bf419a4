"""``rankwise probe`` on a machine with GPUs, through a fake driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def probe(folder: Path, home: Path, words: str) -> list[str]:
    """The lines that a terminal of 80 columns shows."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_NVML": words,
        "RANKWISE_HOME": str(home),
        "COLUMNS": "80",
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", "from rankwise.api.cli.main import main; main()", "probe"]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [line.rstrip() for line in shown.splitlines()]


def test_gpus_are_shown_with_their_state_their_users_and_what_is_wrong(
    fake_driver: Path, tmp_path: Path
) -> None:
    lines = probe(fake_driver, tmp_path, "throttle=0x24 ecc=1 process=7:2048 process=8:-1")
    assert lines[:9] == [
        "GPU 0      Fake Big 80GB, 80 GiB, 75 GiB free, capability 9.0",
        "           GPU-big, PCI 00000000:01:00.0",
        "           37 % busy, 45 °C, 310 of 700 W, clock 1755 of 1980 MHz",
        "           clock held down by: power, thermal",
        "           processes: 7 (2 GiB), 8 (memory unknown)",
        "           unfit: 1 memory error since the last reboot could not be corrected",
        "GPU 1      Fake Small 16GB, 16 GiB, 15 GiB free, capability 7.5",
        "           GPU-small, PCI 00000000:02:00.0",
        "driver     NVIDIA 999.10",
    ]
    assert all(len(line) <= 80 for line in lines)


def test_lists_of_processes_that_may_not_be_read_are_said_to_be(fake_driver: Path, tmp_path: Path) -> None:
    assert "           processes: this user may not list them" in probe(
        fake_driver, tmp_path, "no-permission"
    )
