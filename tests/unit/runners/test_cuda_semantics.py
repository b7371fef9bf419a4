"""What fakes on a CPU keep while they stand for tensors on CUDA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rankwise.runners.cuda_semantics import AUTOCAST_FLOAT32, AUTOCAST_FLOAT32_RESULT, cuda_semantics
from rankwise.runners.fakes import fake_tensors

ROWS, HEADS, LENGTH, SIZE = 2, 4, 256, 64
QUERY = (ROWS, HEADS, LENGTH, SIZE)
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"


@pytest.fixture
def counted() -> dict[str, float]:
    return {}


@pytest.fixture(autouse=True)
def on_cuda(counted: dict[str, float]) -> Iterator[None]:
    def count(dtype: str, operations: float) -> None:
        counted[dtype] = counted.get(dtype, 0.0) + operations

    with fake_tensors(), cuda_semantics(count):
        yield


def kept_by(output: torch.Tensor) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Tensors that the last operator keeps for its backward pass."""
    return sorted(
        (
            (tensor.dtype, tuple(tensor.shape))
            for tensor in output.grad_fn.saved_tensors
            if tensor is not None
        ),
        key=str,
    )


def inputs(dtype: torch.dtype, heads: int = HEADS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query = torch.empty(QUERY, dtype=dtype, requires_grad=True)
    key, value = (torch.empty((ROWS, heads, LENGTH, SIZE), dtype=dtype, requires_grad=True) for _ in range(2))
    return query, key, value


def test_flash_attention_keeps_inputs_output_and_a_float_a_row(counted: dict[str, float]) -> None:
    half = torch.bfloat16
    output = functional.scaled_dot_product_attention(*inputs(half), is_causal=True)
    assert kept_by(output) == sorted([(half, QUERY)] * 4 + [(torch.float32, QUERY[:3])], key=str)
    assert counted == {"bfloat16": 2 * ROWS * HEADS * LENGTH * LENGTH * SIZE}
    output.backward(torch.empty_like(output))
    assert counted["bfloat16"] == 3.5 * 2 * ROWS * HEADS * LENGTH * LENGTH * SIZE


def test_flash_attention_shares_keys_between_heads_without_copies() -> None:
    query, key, value = inputs(torch.bfloat16, heads=1)
    output = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    shared = (torch.bfloat16, (ROWS, 1, LENGTH, SIZE))
    assert kept_by(output).count(shared) == 2
    output.backward(torch.empty_like(output))
    assert key.grad is not None
    assert key.grad.shape == key.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_mask_or_float32_takes_the_efficient_kernel(dtype: torch.dtype) -> None:
    mask = torch.empty((ROWS, 1, LENGTH, LENGTH), dtype=torch.bool)
    output = functional.scaled_dot_product_attention(*inputs(dtype), attn_mask=mask)
    bias = (dtype, tuple(mask.shape))
    assert kept_by(output) == sorted([(dtype, QUERY)] * 4 + [bias, (torch.float32, QUERY[:3])], key=str)


def test_float32_without_a_mask_keeps_no_bias() -> None:
    output = functional.scaled_dot_product_attention(*inputs(torch.float32), is_causal=True)
    assert kept_by(output) == sorted([(torch.float32, QUERY)] * 4 + [(torch.float32, QUERY[:3])], key=str)


def test_attention_runs_in_autocasts_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = functional.scaled_dot_product_attention(*inputs(torch.float32))
    assert output.dtype is torch.bfloat16


class Allocations(TorchDispatchMode):
    """Bytes of each storage that operators return, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.sizes += [t.untyped_storage().nbytes() for t in tree_iter(result) if isinstance(t, torch.Tensor)]
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_keeps_a_byte_a_number(dtype: torch.dtype) -> None:
    given = torch.empty(1_000, dtype=dtype, requires_grad=True)
    with Allocations() as allocations:
        functional.dropout(given, 0.1, training=True)
    assert sorted(allocations.sizes) == [1_000, 1_000 * dtype.itemsize]


def test_no_dropout_keeps_nothing() -> None:
    given = torch.empty(1_000)
    assert functional.dropout(given, 0.1, training=False) is given
    assert functional.dropout(given, 0.0, training=True) is given


def test_layer_norms_under_autocast_are_float32() -> None:
    norm = torch.nn.LayerNorm(SIZE, dtype=torch.bfloat16)
    given = torch.empty((LENGTH, SIZE), dtype=torch.bfloat16)
    assert norm(given).dtype is torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(given).dtype is torch.float32


def test_softmax_under_autocast_gives_float32_unless_asked_for_another() -> None:
    given = torch.empty((LENGTH, SIZE), dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.softmax(given, dim=-1).dtype is torch.float32
        assert functional.softmax(given, dim=-1, dtype=torch.bfloat16).dtype is torch.bfloat16
        assert given.sum().dtype is torch.float32
    assert functional.softmax(given, dim=-1).dtype is torch.bfloat16


def operators_of(macro: str) -> set[str]:
    """Names in one of the lists of the installed header, without overloads."""
    text = HEADER.read_text(encoding="utf-8")
    body = re.search(rf"#define {macro}\(_\)(.*?)(?:\n\n|\n#define|\Z)", text, re.DOTALL)
    assert body is not None
    return set(re.findall(r"_\((\w+)", body.group(1)))


def test_autocasts_lists_are_those_of_the_installed_torch() -> None:
    as_float32 = operators_of("AT_FORALL_FP32")
    assert set(AUTOCAST_FLOAT32) <= as_float32
    unused = {name for name in as_float32 - set(AUTOCAST_FLOAT32) if "norm" not in name}
    assert all("loss" in name or "upsample" in name or name == "pdist" for name in unused)
    norms = {"linalg_vector_norm", "linalg_matrix_norm"}
    assert set(AUTOCAST_FLOAT32_RESULT) == operators_of("AT_FORALL_FP32_SET_OPT_DTYPE") - norms


@pytest.mark.parametrize("fails", [False, True])
def test_functions_are_put_back(fails: bool, counted: dict[str, float]) -> None:
    def looked_up() -> list[object]:
        owners = (torch, functional, torch.Tensor)
        names = [*AUTOCAST_FLOAT32, *AUTOCAST_FLOAT32_RESULT, "dropout", "scaled_dot_product_attention"]
        return [vars(owner).get(name) for owner in owners for name in names]

    before = looked_up()
    with pytest.raises(ValueError, match="on purpose") if fails else torch.no_grad(), cuda_semantics(print):
        assert looked_up() != before
        if fails:
            raise ValueError("on purpose")
    assert looked_up() == before
