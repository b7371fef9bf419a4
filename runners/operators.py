"""What operators return that fakes cannot run, and what they allocate inside on CUDA and compute.

Looked up in torch 2.13 and bitsandbytes 0.50. Knows nothing of models, and of when an operator runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

ALIGNMENT_BYTES = 16
"""Rows of a grouped product begin at multiples of this (create_grouped_gemm_output_tensor)."""

HALF = (torch.bfloat16, torch.float16)


class Inside(NamedTuple):
    """What an operator does out of sight."""

    allocated_bytes: int
    """At once, beside what it returns."""
    moved_bytes: int
    flops: int


def grouped_product(
    one: torch.Tensor,
    other: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,  # noqa: ARG001 - the kernels have none yet
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """What ``_grouped_mm`` returns, in any dtype: torch lets fakes have bfloat16 only.

    The products of experts' rows, (rows, in) × (experts, in, out), or of their gradients, (in, rows) ×
    (rows, out), which gives (experts, in, out).
    """
    dtype = out_dtype or one.dtype
    shape = [one.shape[-2], other.shape[-1]]
    if one.dim() == 2 and other.dim() == 2 and offsets is not None:
        shape = [offsets.shape[0], *shape]
    elif one.dim() == 3 and other.dim() == 3:
        shape = [one.shape[0], *shape]
    unit = ALIGNMENT_BYTES // dtype.itemsize
    width = -(-shape[-1] // unit) * unit
    strides = [shape[-2] * width, width, 1][-len(shape) :]
    return torch.empty_strided(shape, strides, dtype=dtype, device=one.device)


def quantized_rows(
    given: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What ``int8_vectorwise_quant`` returns where no number is an outlier."""
    rows = given.new_empty(given.shape, dtype=torch.int8)
    scales = given.new_empty(given.numel() // given.shape[-1], dtype=torch.float32)
    return rows, scales, given.new_empty(0, dtype=torch.int64) if threshold > 0 else None


def mixed_product(
    given: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``int8_mixed_scaled_mm`` returns where no number is an outlier."""
    return given.new_empty((*rows.shape[:-1], matrix.shape[0])), given.new_empty(0)


STAND_INS: dict[str, Callable[..., Any]] = {
    "aten::_grouped_mm": grouped_product,
    "bitsandbytes::int8_vectorwise_quant": quantized_rows,
    "bitsandbytes::int8_mixed_scaled_mm": mixed_product,
}
"""Operator → what is called with fakes in its place."""


def inside_gemm_4bit(given: torch.Tensor, _: Any, shape: Any, *__: Any) -> Inside:
    """The matrix is unpacked."""
    unpacked = math.prod(shape) * given.element_size()
    flops = 2 * given.numel() * math.prod(shape) // given.shape[-1]
    return Inside(unpacked, 2 * unpacked, flops)


def inside_quantized_rows(given: torch.Tensor, threshold: float = 0.0) -> Inside:
    """Outliers are looked for among absolute values."""
    searched = given.numel() * (given.element_size() + 1) if threshold > 0 else 0
    return Inside(searched, 2 * searched, 0)


def inside_mixed_product(given: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor, *_: Any) -> Inside:
    """The product is made of int32, then of float16, and then of the input's dtype."""
    numbers = rows.numel() // rows.shape[-1] * matrix.shape[0]
    made = numbers * (4 if given.dtype is torch.float16 else 6)
    return Inside(made, 2 * made, 2 * rows.numel() * matrix.shape[0])


INSIDES: dict[str, Callable[..., Inside]] = {
    "bitsandbytes::gemm_4bit": inside_gemm_4bit,
    "bitsandbytes::int8_vectorwise_quant": inside_quantized_rows,
    "bitsandbytes::int8_mixed_scaled_mm": inside_mixed_product,
}
"""Operator → what it does out of sight on CUDA."""


def grouped_flops(one: torch.Tensor, other: torch.Tensor, *_: Any, **__: Any) -> int:
    """Each row meets one expert's matrix, and each row of gradients one row."""
    rows, inner = one.shape[-2:]
    return rows * inner * other.shape[-1] * (2 * one.shape[0] if one.dim() == 3 else 2)


FLOPS: dict[Any, Callable[..., int]] = {**flop_registry, torch.ops.aten._grouped_mm: grouped_flops}
"""Operator → its floating-point operations."""


def statistics_dtype(given: torch.Tensor, weight: torch.Tensor | None, *, on_cuda: bool) -> torch.dtype:
    """Of the means and deviations that a layer or batch norm keeps.

    Fakes on a CPU keep them in the input's dtype.
    """
    if given.dtype in HALF and not (on_cuda or (weight is not None and weight.dtype is torch.float32)):
        return given.dtype
    return torch.float32 if given.dtype in HALF else given.dtype
