"""CUDA devices as NVML reports them: what is there, how much memory is free, who uses it.

Never touches CUDA itself, so a process that asks here can still fork one that uses it. NVML numbers
devices by PCI bus and ignores ``CUDA_VISIBLE_DEVICES``: address devices by UUID. Knows nothing of trials.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from .profiles import GpuProfile

_NOTES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not talk to the NVIDIA driver",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was updated while in use; restart",
}


def read_gpus() -> tuple[tuple[GpuProfile, ...], str | None]:
    """Return the usable devices in NVML's order, and why there are none (None if there are some).

    A device split by MIG is replaced by its instances, which carry its index.
    """
    try:
        with _nvml():
            count = pynvml.nvmlDeviceGetCount()
            driver = _ask(pynvml.nvmlSystemGetDriverVersion)
            found = [_profile(index, *unit, driver) for index in range(count) for unit in _units(index)]
    except pynvml.NVMLError as error:
        return (), _NOTES.get(error.value, f"NVML failed: {error}")
    gpus = tuple(profile for profile in found if profile is not None)
    if not gpus:
        return (), f"none of the NVIDIA driver's {count} devices can be used"
    return visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))


def visible_gpus(
    gpus: tuple[GpuProfile, ...], visible: str | None, order: str | None
) -> tuple[tuple[GpuProfile, ...], str | None]:
    """Those of the GPUs that CUDA programs may use here, and why there are none.

    Args:
        gpus: in NVML's order, which is that of the PCI bus.
        visible: ``CUDA_VISIBLE_DEVICES``: numbers, or UUIDs that may be cut short; None if unset. As in CUDA,
            the first entry that names no device ends the list.
        order: ``CUDA_DEVICE_ORDER``. CUDA's default numbers the fastest device first; NVML cannot tell which
            that is, so numbers are trusted only where they follow the bus or all devices are alike.
    """
    if visible is None:
        return gpus, None
    chosen: list[GpuProfile] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal() and order != "PCI_BUS_ID" and len({gpu.name for gpu in gpus}) > 1:
            return (), (
                f"CUDA_VISIBLE_DEVICES={visible} numbers different GPUs in an order that is not known: "
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs"
            )
        named = [
            gpu
            for gpu in gpus
            if (entry.isdecimal() and gpu.index == int(entry))
            or (entry[:3] in ("GPU", "MIG") and gpu.uuid.startswith(entry))
        ]
        if not named:
            break
        chosen += [gpu for gpu in named if gpu not in chosen]
    return tuple(chosen), None if chosen else f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs"


def device_used_bytes(uuid: str, pids: Collection[int]) -> int | None:
    """Return the device memory of these processes, in bytes.

    None when NVML does not say: no permission, or it lists none of them (they hold no device memory yet,
    or it sees them under other process ids, as from inside some containers).
    """
    try:
        with _nvml():
            device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(device)
    except pynvml.NVMLError:
        return None
    used = [process.usedGpuMemory for process in processes if process.pid in pids]
    return sum(used) if used and None not in used else None


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        _ask(pynvml.nvmlShutdown)


def _ask(query: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, or None where this device, driver or user gets none."""
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None


def _units(index: int) -> Iterator[tuple[Any, Any]]:
    """Yield (device, what CUDA programs use of it): the device itself, or each of its MIG instances."""
    device = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if device is None:
        return
    mig_mode = _ask(pynvml.nvmlDeviceGetMigMode, device)
    if mig_mode is None or mig_mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        yield device, device
        return
    for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        instance = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, device, slot)
        if instance is not None:
            yield device, instance


def _profile(index: int, device: Any, unit: Any, driver: str | None) -> GpuProfile | None:
    """The facts about a device or instance, None for one that does not tell its id or memory."""
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, unit)
    uuid = _ask(pynvml.nvmlDeviceGetUUID, unit)
    if memory is None or uuid is None:
        return None
    load = _ask(pynvml.nvmlDeviceGetUtilizationRates, unit)
    return GpuProfile(
        uuid=uuid,
        index=index,
        name=_ask(pynvml.nvmlDeviceGetName, unit) or "unknown NVIDIA device",
        total_bytes=memory.total,
        used_bytes=memory.used,
        free_bytes=memory.free,
        compute_capability=_ask(pynvml.nvmlDeviceGetCudaComputeCapability, device),
        driver_version=driver,
        utilisation_percent=None if load is None else load.gpu,
    )
