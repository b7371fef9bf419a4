"""What NVML shows beyond the allocator's segments covers what was reported, device by device."""

from __future__ import annotations

import pytest

from rankwise.optimizer.estimates.overheads import (
    TRAINING_THREADS,
    context_bytes,
    cublas_workspace_bytes,
    nccl_bytes,
)

MIB = 2**20
ROUNDING = 15
"""MiB: three figures of a message, each rounded to 0.01 GiB."""

BARE_CONTEXTS = [
    # compute capability, multiprocessors, MiB of a context without work, source
    ((8, 9), 34, 107, "RTX 4060 Ti: ggml-org/llama.cpp#23604"),
    ((8, 9), 142, 426, "RTX 6000 Ada: unslothai/unsloth-zoo#1053, torch 2.10"),
    ((9, 0), 132, 534, "H100: meta-pytorch/torchcomms#777"),
    ((12, 0), 188, 555, "RTX PRO 6000: ggml-org/llama.cpp#23604"),
]

BEYOND_RESERVED = [
    # compute capability, multiprocessors, GiB in use, GiB allocated, MiB reserved beyond that, source
    ((8, 9), 128, 23.28, 22.74, 136.85, "RTX 4090: LoRA, eosphoros-ai/DB-GPT-Hub#248"),
    ((8, 9), 128, 23.48, 22.72, 257.71, "RTX 4090: huggingface/lora-fast#1"),
    ((8, 9), 142, 11.13, 10.25, 394.50, "L40: QwenLM/Qwen3-VL#2097"),
    ((8, 9), 142, 44.40, 43.94, 41.95, "RTX 6000 Ada: DINGYANB/MTVCrafter#21"),
    ((8, 9), 142, 44.47, 43.89, 79.61, "L40S: training, huggingface/sentence-transformers#3214"),
    ((8, 0), 108, 14.25, 12.87, 912.01, "A100 40 GB: TianheWu/CoSeR#10"),
]


@pytest.mark.parametrize(("capability", "multiprocessors", "reported", "source"), BARE_CONTEXTS)
def test_the_low_end_is_a_context_without_work(capability, multiprocessors, reported, source):
    low = context_bytes(capability, multiprocessors=multiprocessors).low / MIB
    assert low == pytest.approx(reported, rel=0.04), source


@pytest.mark.parametrize(
    ("capability", "multiprocessors", "used", "allocated", "cached", "source"), BEYOND_RESERVED
)
def test_what_processes_held_beyond_reserved_lies_in_the_range(
    capability, multiprocessors, used, allocated, cached, source
):
    beyond = (used - allocated) * 1024 - cached
    low, mid, high = (size / MIB for size in context_bytes(capability, multiprocessors=multiprocessors))
    assert low - ROUNDING <= beyond <= high + ROUNDING, source
    assert abs(beyond - mid) <= 100, source


def test_a_t4_held_what_its_range_says():
    """MedicalGPT#179, int8 LoRA: of 14.58 GiB, 14.34 were reserved and 55.62 MiB free."""
    low, _, high = context_bytes((7, 5), multiprocessors=40)
    assert low <= (14.58 - 14.34) * 2**30 - 55.62 * MIB <= high


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_a_known_device_narrows_the_range_of_its_capability(capability):
    wide = context_bytes(capability)
    assert wide.low < wide.mid < wide.high
    anything = context_bytes(None)
    assert anything.low <= wide.low
    assert anything.high >= wide.high


def test_a_capability_that_is_not_listed_counts_as_the_newest_before_it():
    assert context_bytes((8, 7)) == context_bytes((8, 6))
    assert context_bytes((10, 3)) == context_bytes((10, 0))
    assert context_bytes((99, 0)) == context_bytes((12, 0))
    assert context_bytes((3, 5)) == context_bytes((7, 0))


def test_workspaces_are_those_of_pytorch():
    """test_cublas_workspace_explicit_allocation in PyTorch's test/test_cuda.py; 8519680 in pytorch#95668."""
    assert cublas_workspace_bytes((8, 6)) == 8519680
    assert cublas_workspace_bytes((9, 0)) == 32 * MIB
    assert cublas_workspace_bytes((12, 0)) == 32 * MIB
    assert cublas_workspace_bytes(None) == 32 * MIB


def test_forward_and_backward_have_a_workspace_each():
    assert cublas_workspace_bytes((8, 0), threads=TRAINING_THREADS) == 2 * 8519680


def test_nccl_is_there_only_between_devices():
    """544 MB between two A100s and 688 MB between more: NVIDIA/nccl#964."""
    assert nccl_bytes(1) == (0, 0, 0)
    low, mid, high = nccl_bytes(2)
    assert low < 544 * MIB < 688 * MIB < high
    assert low < mid < high
