"""Inputs that are the same in every process: sine waves in place of data."""

from __future__ import annotations

import math

import torch


def wave(*shape: int) -> torch.Tensor:
    """A wave that runs through all elements, each row at another phase; values between -1 and 1."""
    count = math.prod(shape)
    return torch.arange(count, dtype=torch.float32).mul(0.3).sin().reshape(shape)
