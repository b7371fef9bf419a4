"""Devices that trials wait for, and that are put into quarantine: seen through a fake driver."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from rankwise.errors import NotFound
from rankwise.home import Home
from rankwise.probes.gpu import read_gpus
from rankwise.probes.profiles import GpuProcess, GpuProfile
from rankwise.runners import device_care
from rankwise.runners.device_care import DeviceCare, busy, missing_bytes
from rankwise.store import QuarantineCause, Store

GIB = 2**30
TRIAL = 4711
"""The pid of a trial's process."""


@dataclass
class Machine:
    """Two GPUs whose driver says what it is told to, and a store."""

    words: Path
    care: DeviceCare
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def says(self, words: str) -> None:
        """Beside the driver's own GiB."""
        self.words.write_text(words if "unlisted=" in words else f"unlisted=1024 {words}")

    @property
    def big(self) -> GpuProfile:
        return read_gpus()[0][0]

    def told(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture
def machine(
    home: Home, fake_driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """The real bindings, on a fake driver that this process loads."""
    words = tmp_path / "words"
    words.write_text("unlisted=1024")
    monkeypatch.setenv("FAKE_NVML_FILE", str(words))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(fake_driver / "libnvidia-ml.so.1")))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(device_care, "RETURN_S", 0.2)
    monkeypatch.setattr(device_care, "POLL_S", 0.01)
    store = Store.open(home.database)
    events: list[tuple[str, Mapping[str, Any]]] = []
    care = DeviceCare(store=store, tell=lambda kind, payload: events.append((kind, payload)))
    yield Machine(words, care, events)
    store.close()


def never() -> None:
    return None


def test_memory_that_comes_back_is_waited_for(machine: Machine) -> None:
    machine.says("process=1:1024")
    before = machine.big
    machine.says(f"process=1:1024 process={TRIAL}:8192")

    def free() -> None:
        machine.says("process=1:1024")

    machine.care.settle([before], {TRIAL}, free)
    assert machine.events == []
    assert machine.care.hindrance([before]) is None


def test_memory_that_stays_away_is_a_reason_for_quarantine_until_it_is_back(machine: Machine) -> None:
    machine.says("process=1:1024")
    before = machine.big
    machine.says("process=1:1024 unlisted=4096")
    machine.care.settle([before], {TRIAL}, never)
    assert machine.told() == ["device.quarantined"]
    (quarantine,) = machine.care.store.list_quarantines()
    assert (quarantine.device, quarantine.cause) == ("GPU-big", QuarantineCause.MEMORY)
    assert "3.0 GiB of its memory did not come back" in quarantine.reason
    why = machine.care.hindrance([before])
    assert why is not None
    assert "rankwise devices release GPU-big" in why
    machine.says("process=1:1024")
    assert machine.care.hindrance([before]) is None
    assert machine.told() == ["device.quarantined", "device.released"]
    assert machine.care.store.list_quarantines() == []


def test_a_trials_process_that_does_not_go_is_not_taken_for_a_neighbour(machine: Machine) -> None:
    machine.says("process=1:1024")
    before = machine.big
    machine.says(f"process=1:1024 process={TRIAL}:2048")
    machine.care.settle([before], {TRIAL}, never)
    assert machine.told() == ["device.quarantined"]


def test_a_neighbour_is_no_reason_for_quarantine_but_for_waiting(machine: Machine) -> None:
    machine.says("process=1:1024")
    before = machine.big
    machine.says("process=1:1024 process=99:20480")
    machine.care.settle([before], {TRIAL}, never)
    assert machine.events == []
    why = machine.care.hindrance([before])
    assert why is not None
    assert "process 99 took 20.0 GiB of GPU 0" in why
    machine.says("process=1:1100")
    assert machine.care.hindrance([before]) is None


def test_who_releases_a_device_takes_it_as_it_is(machine: Machine) -> None:
    machine.says("process=1:1024")
    before = machine.big
    machine.says("process=1:1024 unlisted=4096")
    machine.care.settle([before], {TRIAL}, never)
    machine.care.store.release_device("GPU-big")
    assert machine.care.store.list_quarantines() == []
    assert machine.care.hindrance([before]) is None
    with pytest.raises(NotFound, match="GPU-big"):
        machine.care.store.release_device("GPU-big")


def test_an_unfit_device_is_not_used_until_it_is_well_or_released(machine: Machine) -> None:
    before = machine.big
    machine.says("ecc=2")
    why = machine.care.hindrance([before])
    assert why is not None
    assert "2 memory errors" in why
    assert machine.care.hindrance([before]) == why
    assert machine.told() == ["device.quarantined"]
    machine.care.store.release_device("GPU-big")
    assert machine.care.hindrance([before]) is None
    machine.says("ecc=3")  # something else is wrong now
    assert "3 memory errors" in str(machine.care.hindrance([before]))
    machine.says("")
    assert machine.care.hindrance([before]) is None
    assert machine.told() == ["device.quarantined", "device.quarantined", "device.released"]


def test_a_device_that_cannot_be_looked_at_stays_in_quarantine(machine: Machine) -> None:
    before = machine.big
    machine.care.store.quarantine_device("GPU-big", QuarantineCause.MEMORY, "it leaks", baseline_bytes=0)
    machine.says("gone")
    assert "it leaks" in str(machine.care.hindrance([before]))


def test_what_others_trials_hold_is_nobodys_business(machine: Machine, lease: Callable[[str], None]) -> None:
    machine.says("process=1:1024")
    before = machine.big
    machine.says("process=99:20480")
    assert machine.care.hindrance([before])
    lease("GPU-big")
    assert machine.care.hindrance([before]) is None


@pytest.fixture
def lease(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have an attempt hold a device."""

    def take(device: str) -> None:
        monkeypatch.setattr(Store, "leased_devices", lambda _self, devices: set(devices) & {device})

    return take


def gpu(used: int | None, *processes: tuple[int, int | None]) -> GpuProfile:
    listed = tuple(
        GpuProcess(pid=pid, used_bytes=None if size is None else size * GIB) for pid, size in processes
    )
    profile = GpuProfile(uuid="GPU-x", index=0, name="x", total_bytes=80 * GIB, driver_version=None)
    return replace(profile, used_bytes=None if used is None else used * GIB, processes=listed)


def test_what_is_not_known_is_no_reason() -> None:
    assert busy(gpu(None), gpu(70)) is None
    assert busy(gpu(1), gpu(None)) is None
    assert missing_bytes(gpu(None), gpu(70), ()) == 0
    assert missing_bytes(gpu(1), gpu(30, (7, None)), ()) == 0
    assert "others took 69.0 GiB" in str(busy(gpu(1), gpu(70)))


def test_growth_of_a_neighbour_is_not_missed() -> None:
    assert missing_bytes(gpu(3, (7, 2)), gpu(10, (7, 9)), {TRIAL}) == 0
    assert missing_bytes(gpu(3, (7, 2)), gpu(3, (7, 2)), {TRIAL}) == 0
    assert missing_bytes(gpu(3, (7, 2)), gpu(12, (7, 9)), {TRIAL}) == 2 * GIB
