"""Which GPUs ``CUDA_VISIBLE_DEVICES`` leaves over."""

from __future__ import annotations

import pytest

from rankwise.probes.gpu import visible_gpus
from rankwise.probes.profiles import GpuProfile

ALIKE = tuple(
    GpuProfile(uuid=f"GPU-{letter * 4}", index=index, name="NVIDIA L4", total_bytes=24 << 30)
    for index, letter in enumerate("abc")
)
MIXED = (*ALIKE, GpuProfile(uuid="GPU-dddd", index=3, name="NVIDIA T4", total_bytes=16 << 30))


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        (None, [0, 1, 2]),
        ("2", [2]),
        ("2,0", [2, 0]),
        (" 1 , 1", [1]),
        ("GPU-bb", [1]),
        ("GPU-cccc,0", [2, 0]),
        ("1,7,0", [1]),
    ],
)
def test_the_devices_that_are_named(visible: str | None, indexes: list[int]) -> None:
    gpus, note = visible_gpus(ALIKE, visible, None)
    assert ([gpu.index for gpu in gpus], note) == (indexes, None)


@pytest.mark.parametrize("visible", ["", "-1", "9", "NoDevFiles"])
def test_none_is_left(visible: str) -> None:
    gpus, note = visible_gpus(ALIKE, visible, None)
    assert gpus == ()
    assert "hides all GPUs" in (note or "")


def test_numbers_of_different_gpus_are_not_guessed() -> None:
    gpus, note = visible_gpus(MIXED, "0", None)
    assert gpus == ()
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in (note or "")
    assert [gpu.index for gpu in visible_gpus(MIXED, "0", "PCI_BUS_ID")[0]] == [0]
    assert [gpu.index for gpu in visible_gpus(MIXED, "GPU-dd", None)[0]] == [3]
