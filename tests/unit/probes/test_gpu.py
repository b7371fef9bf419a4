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
LOST = "the driver has lost the device, it fell off the bus: restart the machine"


def ask(expression: str, folder: Path, words: str = "", before: str = "") -> Any:
    """Evaluate the expression with the fake driver, after the statements of ``before``."""
    code = (
        "import dataclasses, json, os\n"
        "from rankwise.probes.gpu import compute_shares, read_again, read_gpus\n"
        f"{before}\n"
        f"print(json.dumps({expression}, default=dataclasses.asdict))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_NVML": words}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-W", "error", "-c", code]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


def big(folder: Path, words: str = "") -> dict[str, Any]:
    """The first device's profile."""
    found: dict[str, Any] = ask("read_gpus()[0][0]", folder, words)
    return found


def test_a_device_is_read_with_all_that_the_driver_tells(fake_driver: Path) -> None:
    gpus, note = ask("read_gpus()", fake_driver)
    assert note is None
    assert gpus[0] == {
        "uuid": "GPU-big",
        "index": 0,
        "name": "Fake Big 80GB",
        "total_bytes": 80 * GIB,
        "used_bytes": 5 * GIB,
        "free_bytes": 75 * GIB,
        "compute_capability": [9, 0],
        "driver_version": "999.10",
        "pci_bus_id": "00000000:01:00.0",
        "is_mig": False,
        "utilisation_percent": 37,
        "processes": [
            {"pid": 100, "used_bytes": 2 * GIB},
            {"pid": 101, "used_bytes": GIB},
            {"pid": 102, "used_bytes": None},
            {"pid": 103, "used_bytes": GIB},
        ],
        "temperature_c": 45,
        "power_w": 310.5,
        "power_limit_w": 700.0,
        "energy_j": 5000.25,
        "sm_clock_hz": 1_755_000_000,
        "max_sm_clock_hz": 1_980_000_000,
        "throttle_reasons": [],
        "ecc_uncorrected_errors": 0,
        "health_problems": [],
    }


def test_what_a_device_does_not_tell_is_unknown(fake_driver: Path) -> None:
    (_, small), _ = ask("read_gpus()", fake_driver)
    assert (small["uuid"], small["index"], small["compute_capability"]) == ("GPU-small", 1, [7, 5])
    assert small["processes"] == []
    unknown = {name for name, value in small.items() if value is None}
    assert unknown == {
        "utilisation_percent",
        "temperature_c",
        "power_w",
        "power_limit_w",
        "energy_j",
        "sm_clock_hz",
        "max_sm_clock_hz",
        "throttle_reasons",
        "ecc_uncorrected_errors",
    }
    assert small["health_problems"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nvmlSystemGetDriverVersion", "driver_version"),
        ("nvmlDeviceGetPciInfo_v3", "pci_bus_id"),
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w"),
        ("nvmlDeviceGetEccMode", "ecc_uncorrected_errors"),
    ],
)
def test_the_refusal_of_one_query_hides_one_fact(fake_driver: Path, query: str, field: str) -> None:
    assert big(fake_driver, f"refuse={query}") == {**big(fake_driver), field: None}


def test_a_split_device_is_replaced_by_its_instances(fake_driver: Path) -> None:
    (instance, small), note = ask("read_gpus()", fake_driver, "mig throttle=0x20")
    assert note is None
    assert (instance["uuid"], instance["index"], instance["total_bytes"]) == ("MIG-half", 0, 40 * GIB)
    assert instance["is_mig"]
    assert instance["compute_capability"] == [9, 0]
    assert instance["throttle_reasons"] == ["thermal"]
    assert instance["power_w"] is None  # known for the whole board only
    assert small["uuid"] == "GPU-small"
    assert ask("read_again(read_gpus()[0][0])", fake_driver, "mig throttle=0x20") == instance


def test_a_lost_device_does_not_hide_the_others(fake_driver: Path) -> None:
    gpus, note = ask("read_gpus()", fake_driver, "lost")
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-big"]
    assert note is None


def test_a_device_that_is_lost_while_it_is_read_says_so_or_is_left_out(fake_driver: Path) -> None:
    before = "def after(calls):\n    os.environ['FAKE_NVML'] = f'lost-after={calls}'\n    return read_gpus()"
    cases = ask("[after(calls) for calls in range(40)]", fake_driver, before=before)
    told = 0
    for calls, (gpus, note) in enumerate(cases):
        assert gpus[-1]["uuid"] == "GPU-small", calls
        assert note is None
        if len(gpus) == 2:
            assert gpus[0]["health_problems"] in ([LOST], [])
            told += gpus[0]["health_problems"] == [LOST]
    assert len(cases[0][0]) == 1
    assert told > 10
    assert cases[-1][0][0] == big(fake_driver)


def test_the_note_says_why_there_is_no_device(fake_driver: Path, tmp_path: Path) -> None:
    assert ask("read_gpus()", fake_driver, "no-driver") == [
        [],
        "the NVIDIA driver is installed but not loaded",
    ]
    assert ask("read_gpus()", fake_driver, "lost lost-big") == [
        [],
        f"none of the NVIDIA driver's 2 devices can be used; {LOST}",
    ]
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    gpus, note = ask("read_gpus()", tmp_path)
    assert gpus == []
    assert "no NVIDIA driver is installed" in note


def test_processes_that_compute_and_draw_are_counted_once(fake_driver: Path) -> None:
    found = big(fake_driver, "process=7:2048 process=9:-1 draws=7:2048 draws=8:512")["processes"]
    assert found == [
        {"pid": 7, "used_bytes": 2 * GIB},
        {"pid": 8, "used_bytes": GIB // 2},
        {"pid": 9, "used_bytes": None},
    ]
    assert big(fake_driver, "process=0:0")["processes"] == []
    assert big(fake_driver, "no-permission")["processes"] is None


@pytest.mark.parametrize("driver", ["", "old-driver"])
@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x1 | 0x2, []),
        (0x4, ["power"]),
        (0x20, ["thermal"]),
        (0x8 | 0x40, ["thermal"]),
        (0x8 | 0x80, ["power brake"]),
        (0x8, ["hardware slowdown"]),
        (0x4 | 0x20, ["power", "thermal"]),
        (0x10 | 0x100, ["sync boost", "display clock"]),
    ],
)
def test_reasons_for_low_clocks_are_words(
    fake_driver: Path, driver: str, bits: int, words: list[str]
) -> None:
    assert big(fake_driver, f"{driver} throttle={bits:#x}")["throttle_reasons"] == words


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("ecc=1", "1 memory error since the last reboot could not be corrected"),
        ("ecc=3", "3 memory errors since the last reboot could not be corrected"),
        ("remap-pending", "memory rows wait to be remapped: reset the device"),
        ("remap-failed", "remapping of memory rows failed: the device needs service"),
        ("retire-pending", "memory pages wait to be retired: reset the device"),
    ],
)
def test_what_is_wrong_with_a_device_is_said(fake_driver: Path, words: str, problem: str) -> None:
    assert big(fake_driver, words)["health_problems"] == [problem]


def test_without_ecc_its_errors_are_unknown(fake_driver: Path) -> None:
    profile = big(fake_driver, "no-ecc ecc=3")
    assert profile["ecc_uncorrected_errors"] is None
    assert profile["health_problems"] == []


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        ("lost-big", [LOST]),
        ("lost-after=1", [LOST]),
        ("gone", ["the driver no longer knows the device"]),
        ("no-driver", []),
        ("refuse=nvmlDeviceGetMemoryInfo", []),
    ],
)
def test_a_device_that_cannot_be_read_again_keeps_what_never_changes(
    fake_driver: Path, words: str, problems: list[str]
) -> None:
    before = f"gpu = read_gpus()[0][0]\nos.environ['FAKE_NVML'] = {words!r}"
    now = ask("read_again(gpu)", fake_driver, before=before)
    assert (now["uuid"], now["total_bytes"], now["driver_version"]) == ("GPU-big", 80 * GIB, "999.10")
    assert now["used_bytes"] is now["processes"] is now["throttle_reasons"] is None
    assert now["health_problems"] == problems


def test_reading_again_shows_the_present(fake_driver: Path) -> None:
    before = "gpu = read_gpus()[0][0]\nos.environ['FAKE_NVML'] = 'ecc=2 process=5:1024 unlisted=0'"
    now = ask("read_again(gpu)", fake_driver, before=before)
    expected = big(fake_driver, "ecc=2 process=5:1024 unlisted=0")
    assert now == expected
    assert now["used_bytes"] == GIB


def test_compute_time_is_told_by_process_where_it_is_known(fake_driver: Path) -> None:
    def shares(words: str, device: int = 0) -> Any:
        return ask(f"compute_shares(read_gpus()[0][{device}], 1e9)", fake_driver, words)

    assert shares("computes=7:60 computes=8:5") == {"7": 0.6, "8": 0.05}
    assert shares("") == {}
    assert shares("", device=1) is None
    assert shares("mig computes=7:60") is None
