"""The real pynvml against a fake driver library. Each case needs a process: the library is loaded once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GIB = 2**30


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fake libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


def ask(expression: str, folder: Path, mode: str = "") -> Any:
    code = (
        "import dataclasses, json\n"
        "from rankwise.probes.gpu import device_used_bytes, read_gpus\n"
        f"print(json.dumps({expression}, default=dataclasses.asdict))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_NVML": mode}
    command = [sys.executable, "-W", "error", "-c", code]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


def test_devices_are_read_with_what_the_driver_tells(fake_driver: Path) -> None:
    (big, small), note = ask("read_gpus()", fake_driver)
    assert note is None
    assert big == {
        "uuid": "GPU-big",
        "index": 0,
        "name": "Fake Big 80GB",
        "total_bytes": 80 * GIB,
        "used_bytes": 5 * GIB,
        "free_bytes": 75 * GIB,
        "compute_capability": [9, 0],
        "driver_version": "999.10",
        "utilisation_percent": 37,
    }
    assert (small["uuid"], small["index"], small["compute_capability"]) == ("GPU-small", 1, [7, 5])
    assert small["utilisation_percent"] is None


def test_a_split_device_is_replaced_by_its_instances(fake_driver: Path) -> None:
    (instance, small), note = ask("read_gpus()", fake_driver, "mig")
    assert note is None
    assert (instance["uuid"], instance["index"], instance["total_bytes"]) == ("MIG-half", 0, 40 * GIB)
    assert instance["compute_capability"] == [9, 0]
    assert small["uuid"] == "GPU-small"


def test_a_lost_device_does_not_hide_the_others(fake_driver: Path) -> None:
    gpus, note = ask("read_gpus()", fake_driver, "lost")
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-big"]
    assert note is None


def test_the_note_says_why_there_is_no_device(fake_driver: Path, tmp_path: Path) -> None:
    assert ask("read_gpus()", fake_driver, "no-driver") == [
        [],
        "the NVIDIA driver is installed but not loaded",
    ]
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    gpus, note = ask("read_gpus()", tmp_path)
    assert gpus == []
    assert "no NVIDIA driver is installed" in note


def test_used_memory_is_summed_over_the_processes_or_unknown(fake_driver: Path) -> None:
    def used(uuid: str, pids: set[int], mode: str = "") -> int | None:
        return ask(f"device_used_bytes({uuid!r}, {pids!r})", fake_driver, mode)

    assert used("GPU-big", {100, 103, 7}) == 3 * GIB
    assert used("GPU-big", {7}) is None
    assert used("GPU-big", {100, 102}) is None
    assert used("GPU-small", {100}) is None
    assert used("GPU-gone", {100}) is None
    assert used("GPU-big", {100}, "no-permission") is None
    assert used("GPU-big", {100}, "no-driver") is None
