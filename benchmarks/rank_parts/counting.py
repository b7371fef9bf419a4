"""How many bytes of tensors a process holds, counted in torch's allocator on the CPU, part by part of a run.

Everything counts that any library allocates as a tensor, in any thread: DDP's buckets, gathered weights, what
a collective keeps until it is done. What gloo takes for itself does not.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_name("counting.cpp")
PARTS = ("before", "build", "forward", "backward", "optimizer", "end")
MOST_ROWS = 4096


def built() -> Path:
    """The shared library, compiled at the first use (some seconds).

    Raises:
        subprocess.CalledProcessError: the compiler failed.
    """
    text = SOURCE.read_text() + torch.__version__
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rankwise-benchmarks"
    library = cache / f"counting-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    fresh = library.with_suffix(f".{os.getpid()}")
    folders = [f"-I{path}" for path in include_paths()]
    libraries = library_paths()[0]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", abi, *folders, str(SOURCE), "-o", str(fresh)]
    subprocess.run([*command, f"-L{libraries}", "-lc10"], check=True)
    fresh.rename(library)
    return library


class Counter:
    """Counts from the moment on at which it is made; there is one a process."""

    def __init__(self, library: Path, *, watched: str | None = None) -> None:
        """Begin.

        Args:
            watched: the part of which :meth:`blocks` tells what was held at its peak.
        """
        self._library = ctypes.CDLL(str(library))
        self._library.held_bytes.restype = self._library.peak_bytes.restype = ctypes.c_int64
        self._library.blocks_at_peak.restype = ctypes.c_int64
        if watched is not None:
            self._library.watch(PARTS.index(watched))
        self._library.start()

    def begins(self, part: str) -> None:
        """This part begins; it ends with the next."""
        self._library.begin(PARTS.index(part))

    @property
    def held_bytes(self) -> int:
        """Held now."""
        return int(self._library.held_bytes())

    def new_peaks(self) -> dict[str, int]:
        """Most bytes that were held in each part since this was asked before."""
        peaks = {part: int(self._library.peak_bytes(number)) for number, part in enumerate(PARTS)}
        self._library.forget_peaks()
        return peaks

    def blocks(self) -> list[tuple[int, str, int]]:
        """At the watched part's peak: bytes of a block, part in which it was allocated, how many of it."""
        rows = (ctypes.c_int64 * (3 * MOST_ROWS))()
        count = min(MOST_ROWS, self._library.blocks_at_peak(rows, ctypes.c_int64(MOST_ROWS)))
        return [(rows[3 * n], PARTS[rows[3 * n + 1]], rows[3 * n + 2]) for n in range(count)]
