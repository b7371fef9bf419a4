"""What a process holds on a CUDA device besides the tensors of its model.

Two kinds, which are seen by different meters:

- cuBLAS workspaces come from PyTorch's caching allocator: they are part of ``max_memory_allocated``.
- The CUDA context, the code of the kernels that were loaded, and NCCL's buffers come from the driver: NVML
  (``nvidia-smi``) shows them on top of ``max_memory_reserved``, PyTorch does not.

Figures are those of torch 2.13 with ``CUDA_MODULE_LOADING=LAZY`` (its default since 1.13; eager loading took
another 360 MiB and more: pytorch#86509). Each has its source beside it. "Beyond reserved" is worked out from
out-of-memory messages of torch >= 2.1 as ``in use - allocated - reserved but unallocated``; they are rounded
to 0.01 GiB, so one such figure is good to 15 MiB.

Knows nothing of models, of the allocator's segments, and of the device at hand.
"""

from __future__ import annotations

from typing import NamedTuple

MIB = 2**20


class Range(NamedTuple):
    """Bytes: the least and the most to expect, and the middle of what was reported."""

    low: int
    mid: int
    high: int


TRAINING_THREADS = 2
"""Threads that multiply matrices in a training step: the one that calls forward, and autograd's own for the
device, which runs backward. A handle pool lends each a handle of its own (``CublasHandlePool.cpp``)."""

WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
"""``CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8``, the default of ``parseChosenWorkspaceSize`` in ATen's
``CublasHandlePool.cpp``: 8.125 MiB. Met as 8519680 allocated bytes after one product in pytorch#95668."""

LARGE_WORKSPACE_BYTES = 8 * 4096 * 1024
"""The same function's default for Hopper (since pytorch#89027) and Blackwell (since pytorch#175344)."""

_LARGE_WORKSPACE_MAJORS = (9, 10, 12)

_THREADS_AND_MULTIPROCESSORS: dict[tuple[int, int], tuple[int, tuple[int, int, int]]] = {
    (7, 0): (2048, (80, 80, 80)),  # V100
    (7, 5): (1024, (40, 40, 72)),  # T4; Titan RTX
    (8, 0): (2048, (56, 108, 108)),  # A30; A100
    (8, 6): (1536, (28, 82, 84)),  # RTX 3060; RTX 3090; RTX A6000
    (8, 9): (1536, (24, 128, 142)),  # RTX 4060; RTX 4090; L40S
    (9, 0): (2048, (114, 132, 132)),  # H100 PCIe; H100 SXM, H200
    (10, 0): (2048, (148, 148, 148)),  # B200
    (12, 0): (1536, (30, 170, 188)),  # RTX 5060; RTX 5090; RTX PRO 6000
}
"""By compute capability: threads that a multiprocessor holds at once (CUDA programming guide, "Technical
Specifications per Compute Capability"), and multiprocessors of the smallest, the usual and the largest device
(NVIDIA's architecture papers)."""

_CONTEXT_BASE_BYTES = 8 * MIB
_CONTEXT_BYTES_PER_THREAD = 1986
"""A context without any work done grows with the threads that the device holds at once: it backs the stack
of each (1 KiB; cms-sw/cmssw#51395; 216 MiB on an A100 in arcs-skku/EMDC_llvm#13) and as much again. The
line through the RTX 4060 Ti's 107 MiB (34 multiprocessors) and the RTX PRO 6000's 555 MiB (188; both
ggml-org/llama.cpp#23604) also meets, within 3 %, the RTX 6000 Ada's 426 MiB (142; unslothai/unsloth-zoo#1053)
and the H100's 534 MiB (132; meta-pytorch/torchcomms#777)."""

_LIBRARIES = Range(0, 85 * MIB, 1300 * MIB)
"""Kernels and handles of PyTorch, cuBLAS, cuDNN and attention that work loads into the context: 8 to 140 MiB,
86 at the median, in 7 reports on single devices from a T4 to an A100, which the tests list; 164 MiB on an
H100 (vllm-project/vllm#12126). The upper end is that of seven published trainings on an A100 with torch 2.4
(fms-acceleration), where nvidia-smi showed 1.65 to 1.72 GiB beyond what ``benchmarks/published.py`` takes for
reserved, whatever the method: nobody published what they loaded, but a verdict has to reckon with it."""

_NCCL = Range(300 * MIB, 600 * MIB, 1100 * MIB)
"""A communicator's buffers: 544 MB for two A100s and 688 MB for more (NVIDIA/nccl#964); 0.3 to 1.0 GiB remain
in out-of-memory messages of runs on several A100s or H100s once context and libraries are subtracted
(pytorch#111363, tdrussell/diffusion-pipe#153, wbfwonderful/Vad-R1#11)."""


def cublas_workspace_bytes(compute_capability: tuple[int, int] | None, *, threads: int = 1) -> int:
    """Workspaces that cuBLAS keeps from its first product on; part of what PyTorch counts as allocated.

    They are kept for each thread and stream until the process ends, ``empty_cache`` does not return them, and
    cuBLASLt shares them. Until pytorch#168175 (January 2026) cuBLASLt took 1 MiB of its own besides, and
    until pytorch#175344 (February 2026) Blackwell had the smaller size.

    Args:
        compute_capability: of the device; None (unknown, or AMD's, where ROCm's default is the same 32 MiB)
            counts as the larger size.
        threads: that multiply matrices: :data:`TRAINING_THREADS` in training, 1 without a backward pass.
    """
    large = compute_capability is None or compute_capability[0] in _LARGE_WORKSPACE_MAJORS
    return threads * (LARGE_WORKSPACE_BYTES if large else WORKSPACE_BYTES)


def context_bytes(compute_capability: tuple[int, int] | None, *, multiprocessors: int | None = None) -> Range:
    """The CUDA context and the libraries in it: what NVML shows beyond reserved, for a process on one device.

    Args:
        compute_capability: of the device; one that is not in the table counts as the newest before it, None
            (unknown) as any.
        multiprocessors: of the device. None is unknown: then the ends are those of the smallest and the
            largest device of that capability.
    """
    rows = _rows(compute_capability)
    counts = [
        (threads, count if multiprocessors is None else (multiprocessors,) * 3) for threads, count in rows
    ]
    least = min(threads * count[0] for threads, count in counts)
    usual = sorted(threads * count[1] for threads, count in counts)[len(counts) // 2]
    most = max(threads * count[2] for threads, count in counts)
    return Range(
        low=_bare_context_bytes(least) + _LIBRARIES.low,
        mid=_bare_context_bytes(usual) + _LIBRARIES.mid,
        high=_bare_context_bytes(most) + _LIBRARIES.high,
    )


def nccl_bytes(gpus: int) -> Range:
    """Buffers of NCCL on each of the devices of a data-parallel run; nothing for a single one."""
    return _NCCL if gpus > 1 else Range(0, 0, 0)


def _rows(compute_capability: tuple[int, int] | None) -> list[tuple[int, tuple[int, int, int]]]:
    if compute_capability is None:
        return list(_THREADS_AND_MULTIPROCESSORS.values())
    known = [each for each in _THREADS_AND_MULTIPROCESSORS if each <= compute_capability]
    return [_THREADS_AND_MULTIPROCESSORS[max(known, default=min(_THREADS_AND_MULTIPROCESSORS))]]


def _bare_context_bytes(resident_threads: int) -> int:
    return _CONTEXT_BASE_BYTES + _CONTEXT_BYTES_PER_THREAD * resident_threads
