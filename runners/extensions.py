"""DeepSpeed's compiled parts, built once a machine, before anything is measured that needs them.

DeepSpeed builds them when they are first asked for, which takes a compiler and minutes; left to the trials,
that would be measured, and every rank would wait for it. ``python -m rankwise.runners.extensions`` builds
them when all is installed, before any study. Knows nothing about trials.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from .messages import Report

OFFLOADED_ADAM = "CPUAdamBuilder"
SHARED_MEMORY = "ShareMemCommBuilder"
"""How DeepSpeed's processes on one CPU talk; used as soon as it can be built."""


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of an ``extensions`` job. Reports ``progress`` before each build, and their names at the end.

    Raises:
        InputError: a part cannot be built here; with what the compiler, or DeepSpeed, says.
    """
    if spec["on_cpu"]:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    wanted = [SHARED_MEMORY] if spec["on_cpu"] else []
    if spec["offloads"]:
        wanted.append(OFFLOADED_ADAM)
    from deepspeed.accelerator import get_accelerator

    built = {}
    for name in wanted:
        builder = get_accelerator().create_op_builder(name)
        if builder is None or (name == SHARED_MEMORY and not builder.is_compatible()):
            continue
        folder = build_folder(builder.name)
        remove_abandoned_lock(folder)
        if not (folder / f"{builder.name}.so").exists():
            report("progress", phase="build", extension=builder.name)
        started_s = time.monotonic()
        try:
            builder.load()
        except (RuntimeError, OSError, ImportError) as error:
            raise InputError(
                f"DeepSpeed's {builder.name} cannot be built here: {str(error).splitlines()[0]}",
                next_step="install g++ and ninja, or leave out ZeRO",
            ) from error
        built[builder.name] = time.monotonic() - started_s
    report("result", seconds=built)


def own_tools_first(path: str | None) -> str:
    """A ``PATH`` on which the interpreter's own ninja comes first.

    Another version reads the log of what was built otherwise, and would build everything again.
    """
    return os.pathsep.join(filter(None, (str(Path(sys.executable).parent), path)))


def build_folder(name: str) -> Path:
    """Where PyTorch keeps a library of this name, to be built again if sources or flags change."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False))


def remove_abandoned_lock(folder: Path) -> None:
    """Take away the lock of a build that was killed: PyTorch (2.13) would wait for it for ever.

    Whoever builds holds the file open.
    """
    lock = folder / "lock"
    if lock.exists() and not any(lock == held for held in open_files()):
        lock.unlink(missing_ok=True)


def open_files() -> Iterator[Path]:
    """What any process holds open, of those that this user may look at."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            yield link.readlink()


def main() -> int:
    """Build what any study on this machine might need; returns the process's exit code."""
    has_gpu = Path("/proc/driver/nvidia/version").exists()
    os.environ["PATH"] = own_tools_first(os.environ.get("PATH"))
    try:
        run({"on_cpu": not has_gpu, "offloads": True}, Report(sys.stdout.fileno()))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
