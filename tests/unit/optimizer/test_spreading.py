"""Over which devices trainings are spread."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.spreading import alike_gpus, processes_for

GIB = 2**30


def machine(build, *changes):
    """GPUs alike but for these changes."""
    hardware = build.hardware(gpus=len(changes))
    gpus = (replace(gpu, **change) for gpu, change in zip(hardware.gpus, changes, strict=True))
    return replace(hardware, gpus=tuple(gpus))


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ([], []),
        ([{}, {}], [0, 1]),
        ([{"name": "Another GPU"}, {"free_bytes": 20 * GIB}, {}], [1, 2]),
        ([{"total_bytes": 12 * GIB}, {"free_bytes": 20 * GIB}], [1]),
        ([{}, {"health_problems": ("A page is to be retired.",)}], [0]),
        ([{"is_mig": True}, {"is_mig": True}], [0]),
        ([{}, {"is_mig": True}], [0]),
    ],
)
def test_only_devices_alike_share_a_training(build, changes, alike):
    assert [gpu.index for gpu in alike_gpus(machine(build, *changes))] == alike


@pytest.mark.parametrize(
    ("changes", "asked", "batch", "processes"),
    [
        ([], None, 16, 1),
        ([], 2, 16, 2),
        ([], 4, 16, 1),  # of two cores
        ([], 2, 15, 1),
        ([{}], None, 16, 1),
        ([{}, {}], None, 16, 2),
        ([{}, {}], 1, 16, 1),
        ([{}, {}, {}], None, 16, 2),  # three do not divide the batch
        ([{}, {}, {}], None, 12, 3),
        ([{}, {}], None, 1, 1),
        ([{}, {"free_bytes": 20 * GIB}, {"free_bytes": 23 * GIB}], None, 16, 2),
        ([{"free_bytes": 20 * GIB}, {"free_bytes": 20 * GIB}], None, 16, 1),
        ([{"free_bytes": 20 * GIB}, {"free_bytes": 20 * GIB}], 2, 16, 2),
        ([{}, {}], 4, 16, 1),
    ],
)
def test_trainings_are_spread_over_free_devices_or_as_asked(build, changes, asked, batch, processes):
    request = build.request(processes=asked)
    assert processes_for(request, machine(build, *changes), batch) == processes
