"""The machine without its GPUs: processor, memory, disk, libraries and what the environment tells these.

Inside a container or a batch job, memory is what its control group leaves, not what the machine has.
Imports none of the libraries whose versions it reports. Knows nothing of trials.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from .gpu import read_gpus
from .profiles import HardwareProfile, HostProfile

CPUINFO = Path("/proc/cpuinfo")
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "deepspeed",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "triton",
    "liger-kernel",
    "flash-attn",
    "kernels",
)
SPEED_VARIABLES = ("OMP_", "GOMP_", "MKL_", "NCCL_", "CUDA_DEVICE_")
"""Beginnings of the names of environment variables that tell libraries how to compute."""


def read_hardware(disk: Path) -> HardwareProfile:
    """Return host and GPUs. ``disk`` is a path on the file system that runs will write to."""
    gpus, note = read_gpus()
    return HardwareProfile(host=read_host(disk), gpus=gpus, gpu_note=note)


def read_host(disk: Path) -> HostProfile:
    """Return the facts about this machine. ``disk`` may not exist yet: its nearest parent is asked."""
    existing = next(path for path in (disk.absolute(), *disk.absolute().parents) if path.exists())
    total_bytes, available_bytes = memory_bytes()
    model, flags = _processor(CPUINFO)
    return HostProfile(
        cpu_model=model,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=len(os.sched_getaffinity(0)),
        ram_total_bytes=total_bytes,
        ram_available_bytes=available_bytes,
        disk_free_bytes=shutil.disk_usage(existing).free,
        platform=platform.platform(),
        python_version=platform.python_version(),
        native_bf16=None if flags is None else not flags.isdisjoint({"avx512_bf16", "amx_bf16"}),
        libraries=dict(_versions()),
        variables={
            name: value for name, value in sorted(os.environ.items()) if name.startswith(SPEED_VARIABLES)
        },
    )


def memory_bytes(
    groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[int, int]:
    """Return (total, available) RAM in bytes: the machine's, or the tightest control group's where lower.

    A group's page cache that the kernel can drop at once counts as available, as it does for the machine.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _group_limits(groups, membership):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return total, available


class _GroupFiles(NamedTuple):
    limit: str
    usage: str
    droppable: str
    """Key in ``memory.stat`` for file pages not used lately."""


_V1 = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _GroupFiles("memory.max", "memory.current", "inactive_file")


def _group_limits(groups: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, usage without droppable pages) in bytes of this process's group and all above it."""
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        files, mount = (_V1, groups / "memory") if controllers else (_V2, groups)
        # A container sees its own group as the mount's root, but may read the path from outside of it.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            group = mount.joinpath(*parts[:depth])
            limit, usage = _read(group / files.limit).strip(), _read(group / files.usage).strip()
            if limit.isdigit() and usage.isdigit():
                droppable = re.search(
                    rf"^{files.droppable} (\d+)$", _read(group / "memory.stat"), re.MULTILINE
                )
                yield int(limit), int(usage) - (int(droppable[1]) if droppable else 0)


def _processor(cpuinfo: Path) -> tuple[str | None, set[str] | None]:
    """The processor's name and instruction-set flags, each None where the kernel does not list it."""
    fields: dict[str, str] = {}
    for line in _read(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags")
    return fields.get("model name"), None if flags is None else set(flags.split())


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _read(path: Path) -> str:
    """The file's text, "" where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
