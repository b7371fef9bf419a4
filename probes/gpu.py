"""CUDA devices as NVML reports them: what is there, how much memory is free, who uses it, how they are.

Never touches CUDA itself, so a process that asks here can still fork one that uses it. NVML numbers
devices by PCI bus and ignores ``CUDA_VISIBLE_DEVICES``: address devices by UUID. Knows nothing of trials.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pynvml

from .gpu_health import ecc_uncorrected_errors, health_problems, throttle_reasons
from .nvml import UNUSABLE, Questions, session
from .profiles import GpuProcess, GpuProfile

_NOTES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not talk to the NVIDIA driver",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was updated while in use; restart",
}

_MISSING = {
    **UNUSABLE,
    pynvml.NVML_ERROR_NOT_FOUND: "the driver no longer knows the device",
}

_PROCESS_LISTS = (
    pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
)

_HZ_PER_MHZ = 1_000_000


def read_gpus() -> tuple[tuple[GpuProfile, ...], str | None]:
    """Return the usable devices in NVML's order, and why there are none (None if there are some).

    A device split by MIG is replaced by its instances, which carry its index. A device that is lost is left
    out; one that is lost while it is read says so in its health problems.
    """
    found: list[GpuProfile] = []
    problems: list[str] = []
    try:
        with session():
            count = pynvml.nvmlDeviceGetCount()
            driver = Questions().ask(pynvml.nvmlSystemGetDriverVersion)
            for index in range(count):
                questions = Questions()
                found += _profiles(index, driver, questions)
                problems += questions.problems
    except pynvml.NVMLError as error:
        return (), _NOTES.get(error.value, f"NVML failed: {error}")
    if not found:
        causes = "".join(f"; {problem}" for problem in dict.fromkeys(problems))
        return (), f"none of the NVIDIA driver's {count} devices can be used{causes}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible_gpus(tuple(found), visible, os.environ.get("CUDA_DEVICE_ORDER"))


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


def read_again(gpu: GpuProfile) -> GpuProfile:
    """The same device now. What cannot be read now is None, what never changes stays.

    A device that is lost, or no longer known to the driver, says so in its health problems.
    """
    questions = Questions()
    now: GpuProfile | None = None
    problems: tuple[str, ...] = ()
    try:
        with session():
            unit = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            device = _board(unit, questions) if gpu.is_mig else unit
            now = _profile(gpu.index, device, unit, gpu.driver_version, questions)
            problems = questions.problems
    except pynvml.NVMLError as error:
        if error.value in _MISSING:
            problems = (_MISSING[error.value],)
    return now or replace(
        gpu,
        used_bytes=None,
        free_bytes=None,
        utilisation_percent=None,
        processes=None,
        temperature_c=None,
        power_w=None,
        energy_j=None,
        sm_clock_hz=None,
        throttle_reasons=None,
        ecc_uncorrected_errors=None,
        health_problems=problems,
    )


def compute_shares(gpu: GpuProfile, since_s: float) -> Mapping[int, float] | None:
    """The share of time in which each process ran kernels lately, by process id; idle ones are left out.

    None where NVML cannot tell processes apart, as on MIG instances. It samples every device a few times a
    second.

    Args:
        since_s: samples taken before this Unix time do not count.
    """
    since_us = int(since_s * 1e6)
    try:
        with session():
            device = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            samples = pynvml.nvmlDeviceGetProcessUtilization(device, since_us)
    except pynvml.NVMLError as error:
        # pynvml raises NVML_SUCCESS where the driver has no samples, and the driver may say NOT_FOUND.
        return {} if error.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND) else None
    return {
        sample.pid: sample.smUtil / 100
        for sample in samples
        if sample.timeStamp > since_us and sample.smUtil <= 100  # drivers leave some of the array unset
    }


def _profiles(index: int, driver: str | None, questions: Questions) -> Iterator[GpuProfile]:
    """Yield what CUDA programs can use of a device: the device itself, or each of its MIG instances."""
    device = questions.ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if device is None:
        return
    mig_mode = questions.ask(pynvml.nvmlDeviceGetMigMode, device)
    if mig_mode is None or mig_mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        units = [device]
    else:
        slots = range(questions.ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, device) or 0)
        units = [questions.ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, device, slot) for slot in slots]
    for unit in units:
        profile = None if unit is None else _profile(index, device, unit, driver, questions)
        if profile is not None:
            yield profile


def _board(instance: Any, questions: Questions) -> Any:
    """The device that a MIG instance is part of; if that is unknown the instance, which answers less."""
    return questions.ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, instance) or instance


def _profile(
    index: int, device: Any, unit: Any, driver: str | None, questions: Questions
) -> GpuProfile | None:
    """The facts about a device or instance, None for one that does not tell its id or memory.

    Clocks, heat and health are the board's. Its power is not shared out to instances: theirs is unknown.
    """
    ask = questions.ask
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, unit)
    uuid = ask(pynvml.nvmlDeviceGetUUID, unit)
    if memory is None or uuid is None:
        return None
    is_mig = uuid.startswith("MIG")
    load = ask(pynvml.nvmlDeviceGetUtilizationRates, unit)
    bus = ask(pynvml.nvmlDeviceGetPciInfo, device)
    ecc_errors = ecc_uncorrected_errors(device, questions)
    return GpuProfile(
        uuid=uuid,
        index=index,
        name=ask(pynvml.nvmlDeviceGetName, unit) or "unknown NVIDIA device",
        total_bytes=memory.total,
        used_bytes=memory.used,
        free_bytes=memory.free,
        compute_capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, device),
        driver_version=driver,
        pci_bus_id=None if bus is None else bus.busId,
        is_mig=is_mig,
        utilisation_percent=None if load is None else load.gpu,
        processes=_processes(unit, questions),
        temperature_c=ask(pynvml.nvmlDeviceGetTemperature, device, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if is_mig else _from_milli(ask(pynvml.nvmlDeviceGetPowerUsage, device)),
        power_limit_w=None if is_mig else _from_milli(ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, device)),
        energy_j=None if is_mig else _from_milli(ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, device)),
        sm_clock_hz=_hertz(ask(pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_SM)),
        max_sm_clock_hz=_hertz(ask(pynvml.nvmlDeviceGetMaxClockInfo, device, pynvml.NVML_CLOCK_SM)),
        throttle_reasons=throttle_reasons(device, questions),
        ecc_uncorrected_errors=ecc_errors,
        health_problems=tuple(health_problems(device, ecc_errors, questions)),
    )


def _processes(unit: Any, questions: Questions) -> tuple[GpuProcess, ...] | None:
    """Who holds memory on the device or instance, by process id; None where no list may be read."""
    lists = [questions.ask(query, unit) for query in _PROCESS_LISTS]
    if all(processes is None for processes in lists):
        return None
    used: dict[int, int | None] = {}
    for process in (process for processes in lists if processes for process in processes):
        # A process that computes and draws is in two lists, with the same memory in each.
        used[process.pid] = used.get(process.pid) or process.usedGpuMemory
    return tuple(GpuProcess(pid=pid, used_bytes=used[pid]) for pid in sorted(used))


def _from_milli(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _hertz(megahertz: int | None) -> int | None:
    return None if megahertz is None else megahertz * _HZ_PER_MHZ
