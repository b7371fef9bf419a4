"""What holds a GPU's clocks down and what makes it unfit for measurements, as NVML says. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pynvml

from .nvml import Questions

THERMAL = "thermal"
POWER = "power"
POWER_BRAKE = "power brake"
HARDWARE_SLOWDOWN = "hardware slowdown"

_REASONS = {
    pynvml.nvmlClocksEventReasonSwPowerCap: POWER,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: THERMAL,
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: THERMAL,
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: POWER_BRAKE,
    pynvml.nvmlClocksThrottleReasonHwSlowdown: HARDWARE_SLOWDOWN,
    pynvml.nvmlClocksEventReasonSyncBoost: "sync boost",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display clock",
}
"""NVML's reasons as words (NVML reference, NvmlClocksEventReasons).

Idling and clocks that were set on purpose are none. Both kinds of thermal slowdown share a word, since both
distort speed.
"""


def throttle_reasons(device: Any, questions: Questions) -> tuple[str, ...] | None:
    """Why the clocks are held down now; None where NVML does not say."""
    bits = questions.ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, device)
    if bits is None:  # drivers before 535 know it by its old name only
        bits = questions.ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, device)
    if bits is None:
        return None
    words = dict.fromkeys(word for bit, word in _REASONS.items() if bits & bit)
    if THERMAL in words or POWER_BRAKE in words:
        words.pop(HARDWARE_SLOWDOWN, None)  # NVML sets this bit beside the one that tells the cause
    return tuple(words)


def ecc_uncorrected_errors(device: Any, questions: Questions) -> int | None:
    """Memory errors that ECC could not correct since the last reboot; None without ECC."""
    modes = questions.ask(pynvml.nvmlDeviceGetEccMode, device)
    if modes is None or modes[0] != pynvml.NVML_FEATURE_ENABLED:
        return None
    errors: int | None = questions.ask(
        pynvml.nvmlDeviceGetTotalEccErrors,
        device,
        pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        pynvml.NVML_VOLATILE_ECC,
    )
    return errors


def health_problems(device: Any, ecc_errors: int | None, questions: Questions) -> Iterator[str]:
    """Yield a sentence for each thing that makes the device unfit for measurements."""
    if ecc_errors:
        count = "1 memory error" if ecc_errors == 1 else f"{ecc_errors} memory errors"
        yield f"{count} since the last reboot could not be corrected"
    remapped = questions.ask(pynvml.nvmlDeviceGetRemappedRows, device)
    if remapped is not None:
        _correctable, _uncorrectable, pending, failed = remapped
        if pending:
            yield "memory rows wait to be remapped: reset the device"
        if failed:
            yield "remapping of memory rows failed: the device needs service"
    if questions.ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, device) == pynvml.NVML_FEATURE_ENABLED:
        yield "memory pages wait to be retired: reset the device"
    yield from questions.problems
