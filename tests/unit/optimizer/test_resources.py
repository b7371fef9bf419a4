from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Adapter, Candidate, Level, Measurement, Method, Recipe
from rankwise.optimizer.resources import (
    CARDS,
    CORES_PER_GPU,
    GIB,
    GPU_MARGIN,
    HOST_RESERVE_BYTES,
    START_S,
    TIME_RESERVE,
    UNKNOWN_HOST_BYTES,
    UNKNOWN_TIME_S,
    Resources,
    card_gb,
    flat,
    resources_of,
)
from rankwise.probes.profiles import GpuProfile, HardwareProfile, HostProfile

HOST = HostProfile(
    cpu_model="a CPU",
    physical_cores=48,
    logical_cores=96,
    ram_total_bytes=512 * GIB,
    ram_available_bytes=500 * GIB,
    disk_free_bytes=2**40,
    platform="Linux",
    python_version="3.11.7",
    native_bf16=True,
)
GPU = GpuProfile(
    index=0, uuid="GPU-1", name="NVIDIA A100-SXM4-80GB", total_bytes=80 * GIB, free_bytes=80 * GIB
)
MEASURED = Measurement(
    step_s_mean=3.6,
    tokens_per_s=1_000.0,
    tokens_per_s_rel_halfwidth=0.1,
    peak_device_bytes=20 * GIB,
    peak_reserved_bytes=18 * GIB,
    peak_process_bytes=6 * GIB,
)


def candidate(processes: int = 1) -> Candidate:
    return Candidate(
        adapter=Adapter(method=Method.LORA, rank=8),
        level=Level(processes=processes),
        recipe=Recipe(max_length=128),
        micro_batch=4,
        learning_rate=1e-4,
    )


def asked(measured: Measurement | None, *, gpus: int = 1, processes: int = 1) -> Resources:
    hardware = HardwareProfile(host=HOST, gpus=(GPU,) * gpus, gpu_note=None if gpus else "no driver")
    return resources_of(candidate(processes), measured, total_steps=10_000, hardware=hardware)


def test_a_gpu_is_asked_for_with_what_was_measured_and_a_margin() -> None:
    found = asked(MEASURED)
    assert (found.gpus, found.gpu_name, found.gpu_card_gb) == (1, "NVIDIA A100-SXM4-80GB", 24)
    assert found.gpu_bytes == int(20 * GIB * GPU_MARGIN)
    assert found.host_bytes == 6 * GIB + HOST_RESERVE_BYTES
    assert found.cpus == CORES_PER_GPU
    assert found.hours is not None
    assert found.hours.mid == pytest.approx(10.0)
    assert found.hours.low < found.hours.mid < found.hours.high
    assert found.limit_s == pytest.approx(found.hours.high * 3600 * TIME_RESERVE + START_S, abs=1)


def test_what_the_driver_does_not_tell_is_what_torch_reserved() -> None:
    assert asked(replace(MEASURED, peak_device_bytes=None)).gpu_bytes == int(18 * GIB * GPU_MARGIN) + 1
    nothing = asked(replace(MEASURED, peak_device_bytes=None, peak_reserved_bytes=None))
    assert (nothing.gpus, nothing.gpu_bytes, nothing.gpu_card_gb) == (1, None, None)


def test_each_of_several_processes_has_a_gpu() -> None:
    found = asked(MEASURED, gpus=4, processes=4)
    assert (found.gpus, found.cpus) == (4, 4 * CORES_PER_GPU)
    assert found.gpu_bytes == asked(MEASURED).gpu_bytes


def test_a_cpu_has_all_its_cores_and_no_gpu() -> None:
    found = asked(replace(MEASURED, peak_device_bytes=None, peak_reserved_bytes=None), gpus=0, processes=2)
    assert (found.gpus, found.gpu_name, found.gpu_bytes, found.gpu_card_gb) == (0, None, None, None)
    assert found.cpus == 48


def test_nothing_measured_asks_for_what_is_usual() -> None:
    found = asked(None)
    assert (found.host_bytes, found.limit_s, found.hours) == (UNKNOWN_HOST_BYTES, UNKNOWN_TIME_S, None)


def test_a_card_is_large_enough_whoever_made_it() -> None:
    enough = {1: 10, 11.8: 16, 21.9: 24, 22.2: 32, 44.3: 48, 44.5: 80, 79.2: 94, 180: 186}
    assert {gib: card_gb(int(gib * GIB)) for gib in enough} == enough
    assert card_gb(1000 * GIB) is None
    assert all(least_bytes < size * GIB for size, least_bytes in CARDS)


def test_flat_has_a_name_for_everything_and_rounds_up() -> None:
    found = flat(asked(MEASURED))
    assert (found["gpu_gib"], found["host_gib"]) == (21, 10)
    assert found["limit_minutes"] * 60 >= found["limit_seconds"]
    assert set(flat(asked(None))) == set(found)
