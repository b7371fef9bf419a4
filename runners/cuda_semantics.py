"""What CUDA keeps in memory where a CPU does something else, so that fakes on a CPU tell of CUDA.

Operators that both have allocate alike. What differs is which kernel attention takes, what dropout keeps,
which operators autocast runs in float32. Knows nothing of
candidates, and of how memory is counted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch.nn import functional

AUTOCAST_FLOAT32 = [
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "group_norm",
    "cosine_similarity",
    "nll_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "dist",
    "cdist",
    "renorm",
    "logsumexp",
]
"""What CUDA's autocast computes in float32 and a CPU's does not (ATen/autocast_mode.h of torch 2.13)."""

AUTOCAST_FLOAT32_RESULT = ["prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum"]
"""What it lets return float32, unless another dtype is asked for, without a copy of the input."""

HALF = (torch.bfloat16, torch.float16)
MISSING = object()

FLASH_HEAD = 256
"""The widest head that the flash kernels take."""

BLOCK = 128
"""The flash kernels round lengths up to this, and heads to 32, in what they accumulate."""
EFFICIENT_ROUND = 32
BIAS_ROUND = 8


@contextmanager
def cuda_semantics(flops: Callable[[str, float], None]) -> Iterator[None]:
    """While active, fake tensors on the CPU allocate as on CUDA.

    Functions are replaced where they are looked up: a mode for functions would see each look at a tensor's
    shape, and not the forward passes that checkpointing repeats.

    Args:
        flops: is told the dtype and the operations of attention, which is not one operator here.
    """
    replaced: list[tuple[Any, str, Any]] = [
        (functional, "scaled_dot_product_attention", partial(attention, flops)),
        (functional, "dropout", dropout),
    ]
    # Asked without a device, torch answers for CUDA: PEFT's quantized layers then copy their inputs or not.
    replaced.append((torch, "is_autocast_enabled", autocast_enabled(torch.is_autocast_enabled)))
    for owner in (torch, functional, torch.Tensor):
        for names, wrap in ((AUTOCAST_FLOAT32, on_float32), (AUTOCAST_FLOAT32_RESULT, to_float32)):
            replaced += [(owner, name, wrap(getattr(owner, name))) for name in names if hasattr(owner, name)]
    # bitsandbytes (0.50), where it is in use, takes 8-bit products on a CPU by another way.
    if (products := sys.modules.get("bitsandbytes.autograd._functions")) is not None:
        replaced.append((products, "MatMul8bitFp", vars(products)["MatMul8bitLt"]))
    before = [(owner, name, owner.__dict__.get(name, MISSING)) for owner, name, _ in replaced]
    try:
        for owner, name, function in replaced:
            setattr(owner, name, function)
        yield
    finally:
        for owner, name, function in before:
            if function is MISSING:
                delattr(owner, name)  # torch.Tensor inherits its methods
            else:
                setattr(owner, name, function)


def autocast_enabled(function: Callable[..., bool]) -> Callable[..., bool]:
    """``torch.is_autocast_enabled`` that speaks of the CPU where no device is named."""
    return lambda *device: function(*(device or ("cpu",)))


def on_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, under autocast on float32 copies of half-precision tensors."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(in_float32(value) for value in args)
            kwargs = {name: in_float32(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return wrapped


def to_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, under autocast with a float32 result unless another dtype is asked for."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else kwargs.get("input")
        if (
            torch.is_autocast_enabled("cpu")
            and isinstance(first, torch.Tensor)
            and first.dtype in HALF
            and kwargs.get("dtype") is None
        ):
            kwargs["dtype"] = torch.float32
        return function(*args, **kwargs)

    return wrapped


def in_float32(value: Any) -> Any:
    """A half-precision tensor as float32; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.dtype in HALF:
        return value.float()
    return value


def dropout(
    input: torch.Tensor,  # noqa: A002 - the name that callers use
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,  # noqa: ARG001 - the kernel has no such form
) -> torch.Tensor:
    """CUDA's fused kernel keeps a byte an element; a CPU's keeps the noise in the input's dtype."""
    if not training or p == 0:
        return input
    dropped: torch.Tensor = torch.native_dropout(input, p, True)[0]
    return dropped


def attention(
    flops: Callable[[str, float], None],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - the kernels keep a seed, not a mask
    is_causal: bool = False,
    scale: float | None = None,  # noqa: ARG001
    enable_gqa: bool = False,
) -> Any:
    """As ``scaled_dot_product_attention`` chooses on CUDA: flash, memory-efficient, or plain operators.

    Tensors are (batch, heads, length, head size).
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    half = query.dtype in HALF
    even = query.shape[-1] == value.shape[-1]
    # Of causal attention the kernels leave out what is masked. The functions must not keep a tensor alive.
    operations = (2.0 if is_causal else 4.0) * query.shape[:-1].numel() * key.shape[-2] * query.shape[-1]
    count = partial(count_operations, flops, str(query.dtype).removeprefix("torch."), operations)
    if attn_mask is None and half and even and query.shape[-1] <= FLASH_HEAD:
        return FlashAttention.apply(query, key, value, count)
    if key.shape[1] != query.shape[1] and enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    bias = None if attn_mask is None else additive(attn_mask, query)
    return EfficientAttention.apply(query, key, value, bias, count)


def count_operations(
    flops: Callable[[str, float], None], dtype: str, operations: float, times: float
) -> None:
    """Tell of a forward pass's operations, so many times."""
    flops(dtype, operations * times)


def additive(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The mask as a bias of the query's dtype, its rows padded to the kernel's alignment."""
    bias = torch.empty_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask
    excess = -bias.shape[-1] % BIAS_ROUND
    return functional.pad(bias, (0, excess))[..., : bias.shape[-1]] if excess else bias


class FlashAttention(torch.autograd.Function):
    """Keeps its inputs, its output, and a float32 a row and head; accumulates dQ in float32 (mha_bwd)."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, count: Callable[[float], None]) -> Any:
        """Output as (batch, heads, length, head size), in memory by length."""
        batch, heads, length, size = query.shape
        count(1.0)
        out = query.new_empty(batch, length, heads, size).transpose(1, 2)
        logsumexp = query.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.count = count
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of query, key and value."""
        query, key, value, _, _ = ctx.saved_tensors
        batch, heads, length, size = query.shape
        ctx.count(2.5)
        rounded, wide = round_up(length, BLOCK), round_up(size, 32)
        gradient = gradients[0]
        if gradient.stride(-1) != 1:
            gradient = gradient.contiguous()
        d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        workspace = [
            query.new_empty((batch, heads, rounded), dtype=torch.float32),
            query.new_empty((batch, rounded, heads, wide), dtype=torch.float32),
        ]
        if key.shape[1] != heads:
            # Each query head has a gradient of its own for the keys and values that it shares.
            workspace += [query.new_empty(batch, key.shape[2], heads, size) for _ in range(2)]
        del workspace
        return d_query, d_key, d_value, None


class EfficientAttention(torch.autograd.Function):
    """Keeps the same as flash attention, and the bias; accumulates dQ in float32 (fmha backward)."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, count: Callable[[float], None]) -> Any:
        """Output as (batch, heads, length, head size of the values)."""
        batch, heads, length, _ = query.shape
        count(1.0)
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        logsumexp = query.new_empty((batch, heads, round_up(length, EFFICIENT_ROUND)), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, logsumexp)
        ctx.count = count
        return out

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Gradients of query, key, value, and of a bias that is learnt."""
        query, key, value, bias, _, _ = ctx.saved_tensors
        ctx.count(2.5)
        d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        delta = query.new_empty(query.shape[:-1], dtype=torch.float32)
        workspace = torch.empty_like(query, dtype=torch.float32)
        del delta, workspace
        d_bias = torch.empty_like(bias) if ctx.needs_input_grad[3] else None
        return d_query, d_key, d_value, d_bias, None


def round_up(number: int, step: int) -> int:
    """The next multiple of the step."""
    return math.ceil(number / step) * step
