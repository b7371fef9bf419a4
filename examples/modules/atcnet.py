"""ATCNet: which movement somebody imagines, told from their EEG.

Altaheri, Muhammad and Alsulaiman: Physics-Informed Attention Temporal Convolutional Network for EEG-Based
Motor Imagery Classification (IEEE Transactions on Industrial Informatics, 2023). Convolutions over time and
electrodes make a short sequence; each of several windows that slide over it has attention, a temporal
convolution network and a dense head of its own, and the heads' scores are averaged.

Layers are called as the windows are numbered: ``msa0``, ``tcn0``, ``dense0``, ``msa1``, …
"""

from __future__ import annotations

import torch
from torch import nn

from .waves import wave

POOL, SECOND_POOL = 8, 7
SECOND_KERNEL = 16


def padded(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """With zeros around the times, so that a convolution leaves as many of them."""
    return nn.functional.pad(x, ((kernel - 1) // 2, kernel // 2))


class ConvolutionBlock(nn.Module):
    """(rows, electrodes, samples) to (rows, samples / 56, features)."""

    def __init__(self, electrodes: int, *, filters: int, depth: int, kernel: int, dropout: float) -> None:
        super().__init__()
        features = filters * depth
        self._kernel = kernel
        self.temporal = nn.Conv2d(1, filters, (1, kernel), bias=False)
        self.temporal_norm = nn.BatchNorm2d(filters)
        self.spatial = nn.Conv2d(filters, features, (electrodes, 1), groups=filters, bias=False)
        self.spatial_norm = nn.BatchNorm2d(features)
        self.mixing = nn.Conv2d(features, features, (1, SECOND_KERNEL), bias=False)
        self.mixing_norm = nn.BatchNorm2d(features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.temporal_norm(self.temporal(padded(x[:, None], self._kernel)))
        found = nn.functional.elu(self.spatial_norm(self.spatial(found)))
        found = self.dropout(nn.functional.avg_pool2d(found, (1, POOL)))
        found = nn.functional.elu(self.mixing_norm(self.mixing(padded(found, SECOND_KERNEL))))
        found = self.dropout(nn.functional.avg_pool2d(found, (1, SECOND_POOL)))
        return found[:, :, 0].transpose(1, 2)


class ConvolutionNetwork(nn.Module):
    """Two residual blocks of causal convolutions, the second of which looks twice as far back."""

    def __init__(self, features: int, *, kernel: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(features, features, kernel, dilation=2 ** (number // 2)) for number in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(features) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        self._reaches = [(kernel - 1) * 2 ** (number // 2) for number in range(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, samples, features) to (rows, features): what is known after the last sample."""
        sequence = x.transpose(1, 2)
        for first in (0, 2):
            inner = self._step(self._step(sequence, first), first + 1)
            sequence = nn.functional.elu(sequence + inner)
        return sequence[:, :, -1]

    def _step(self, sequence: torch.Tensor, number: int) -> torch.Tensor:
        causal = nn.functional.pad(sequence, (self._reaches[number], 0))
        found = self.norms[number](self.convolutions[number](causal))
        return self.dropout(nn.functional.elu(found))


class ATCNet(nn.Module):
    """(rows, electrodes, samples) to scores of classes."""

    def __init__(
        self, electrodes: int, classes: int, *, windows: int, filters: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        features = 2 * filters
        self.windows = windows
        self.block = ConvolutionBlock(electrodes, filters=filters, depth=2, kernel=64, dropout=dropout)
        for number in range(windows):
            self.add_module(f"norm{number}", nn.LayerNorm(features))
            attention = nn.MultiheadAttention(features, heads, dropout=dropout, batch_first=True)
            self.add_module(f"msa{number}", attention)
            self.add_module(f"tcn{number}", ConvolutionNetwork(features, kernel=4, dropout=dropout))
            self.add_module(f"dense{number}", nn.Linear(features, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sequence = self.block(x)
        length = sequence.shape[1] - self.windows + 1
        scores = [
            self._window(sequence[:, number : number + length], number) for number in range(self.windows)
        ]
        return torch.stack(scores).mean(0)

    def _window(self, sequence: torch.Tensor, number: int) -> torch.Tensor:
        normed = self.get_submodule(f"norm{number}")(sequence)
        attended, _ = self.get_submodule(f"msa{number}")(normed, normed, normed, need_weights=False)
        last = self.get_submodule(f"tcn{number}")(sequence + attended)
        return self.get_submodule(f"dense{number}")(last)


def build(
    electrodes: int = 22,
    classes: int = 4,
    samples: int = 448,
    windows: int = 3,
    filters: int = 16,
    heads: int = 2,
    dropout: float = 0.3,
) -> nn.Module:
    """The paper's sizes, with three of its five windows and a shorter recording."""
    module = ATCNet(electrodes, classes, windows=windows, filters=filters, heads=heads, dropout=dropout)
    module.example_inputs = {"x": wave(2, electrodes, samples)}
    return module
