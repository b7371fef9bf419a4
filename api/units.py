"""Sizes and durations as people write them, and back. Knows nothing of what is measured in them."""

from __future__ import annotations

import math
import re

from ..errors import InputError

_BYTES_PER_UNIT = {
    "B": 1,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    # A bare letter is binary, as Slurm, Docker and systemd read it where they limit memory.
    **{prefix: 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
_UNIT_BY_LOWER = {unit.lower(): unit for unit in _BYTES_PER_UNIT}
_SECONDS_PER_UNIT = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

MAX_BYTES = 2**50
"""1 PiB: no machine has more memory, so more is a slip of the unit."""

MAX_SECONDS = 366 * 86400.0
"""A year: no study runs longer, so more is a slip of the unit."""

MAX_SHARE = 10.0
"""Ten times as much: beyond it, nobody means a share."""

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:ms|[dhms])\s*)+", re.IGNORECASE | re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[dhms])", re.IGNORECASE | re.ASCII)


def parse_bytes(value: str | int) -> int:
    """``"10GiB"`` or ``"10G"`` (2**30), ``"10 GB"`` (10**9) or a number of bytes, as bytes; any case.

    Raises:
        InputError: no number, no unit or an unknown one, nothing or less, or more than 1 PiB.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise InputError(f"{value!r} is not a size", next_step="write it like 10GiB or 512MiB")
        number, unit = match.groups()
        if not unit:
            raise InputError(f"size {value!r} has no unit", next_step=f"write {number}GiB or {number}MiB")
        if unit.lower() not in _UNIT_BY_LOWER:
            raise InputError(
                f"unit {unit!r} in size {value!r} is unknown",
                next_step=f"use one of {', '.join(_BYTES_PER_UNIT)}",
            )
        size: float = float(number) * _BYTES_PER_UNIT[_UNIT_BY_LOWER[unit.lower()]]
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise InputError(f"{value!r} is not a size", next_step='write it like "10GiB", or as whole bytes')
    if not 1 <= size <= MAX_BYTES:
        raise InputError(f"size {value!r} is not between 1 B and 1 PiB", next_step="write it like 10GiB")
    return round(size)


def parse_seconds(value: str | float) -> float:
    """``"10m"``, ``"90s"``, ``"1h30m"``, ``"1 h 05 m"`` or a number of seconds, as seconds.

    Raises:
        InputError: no number, no unit or an unknown one, nothing or less, or more than a year.
    """
    if isinstance(value, str):
        text = value.strip()
        if not _DURATION.fullmatch(text):
            hint = f"{text}s or {text}m" if text.isdecimal() else "90s, 10m or 1h30m"
            raise InputError(f"{value!r} is not a duration with units", next_step=f"write it like {hint}")
        parts = _DURATION_PART.findall(text)
        seconds = sum(float(number) * _SECONDS_PER_UNIT[unit.lower()] for number, unit in parts)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        raise InputError(f"{value!r} is not a duration", next_step='write it like "10m", or as seconds')
    if not 0 < seconds <= MAX_SECONDS:
        raise InputError(
            f"duration {value!r} is not between 0 and a year", next_step="write it like 90s, 10m or 1h30m"
        )
    return float(seconds)


def parse_share(value: str | float) -> float:
    """``"1%"``, ``"0.01"`` or 0.01, as a share of one.

    Raises:
        InputError: no number, less than nothing, or more than ten times as much.
    """
    if isinstance(value, str):
        match = _SHARE.fullmatch(value.strip())
        if match is None:
            raise InputError(f"{value!r} is not a share", next_step="write it like 1% or 0.01")
        share = float(match[1]) / (100 if match[2] else 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    else:
        raise InputError(f"{value!r} is not a share", next_step='write it like "1%" or 0.01')
    if not 0 <= share <= MAX_SHARE:
        raise InputError(
            f"share {value!r} is not between 0 and {MAX_SHARE:.0%}", next_step="write 1% or 0.01"
        )
    return share


def format_bytes(size_bytes: int) -> str:
    """Three digits and a binary unit: ``1.24 GiB``, ``310 MiB``, ``512 B``."""
    power = min(max(math.frexp(size_bytes)[1] - 1, 0) // 10, 4)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    amount = size_bytes / 1024**power
    return f"{amount:.3g} {unit}" if amount < 999.5 else f"{amount:.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """The two leading units: ``31 ms``, ``4.2 s``, ``45 s``, ``2 m 03 s``, ``1 h 05 m``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} m"
