"""A series to train the example forecasters on, and windows of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CHANNELS, CONTEXT, HORIZON = 3, 32, 8


def windows(count: int, *, rows: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (past, future) from places of a noisy sum of two seasons, equal in every run."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(2_000, dtype=torch.float32)[:, None]
    periods = torch.tensor([[24.0, 7.0, 31.0]])
    series = (times / periods).mul(2 * torch.pi).sin() + (times / 168).mul(2 * torch.pi).cos() / 2
    series += torch.randn(series.shape, generator=generator) / 10
    length = CONTEXT + HORIZON
    for _ in range(count):
        starts = torch.randint(0, len(series) - length, (rows,), generator=generator)
        batch = torch.stack([series[start : start + length] for start in starts])
        yield batch[:, :CONTEXT], batch[:, CONTEXT:]
