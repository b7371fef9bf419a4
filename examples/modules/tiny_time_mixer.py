"""TinyTimeMixer: forecasts by MLPs that mix patches and features in turn.

Ekambaram et al.: Tiny Time Mixers (TTMs): Fast Pre-trained Models for Enhanced Zero/Few-Shot Forecasting of
Multivariate Time Series (NeurIPS 2024), after TSMixer (KDD 2023): patches, mixer blocks with gated attention,
adaptive patching (early levels see more and narrower patches), a smaller decoder that also mixes channels, a
linear head.
"""

from __future__ import annotations

import torch
from torch import nn

from .forecasts import Forecaster, scale_of
from .waves import wave


class Mixer(nn.Module):
    """An MLP with gated attention along one axis of (rows, channels, patches, features), beside itself."""

    def __init__(self, size: int, features: int, *, axis: int, dropout: float) -> None:
        super().__init__()
        self._axis = axis
        self.norm = nn.LayerNorm(features)
        self.fc1 = nn.Linear(size, 2 * size)
        self.fc2 = nn.Linear(2 * size, size)
        self.gate = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.norm(x).transpose(self._axis, -1)
        found = self.dropout(self.fc2(self.dropout(nn.functional.gelu(self.fc1(found)))))
        found = found * torch.softmax(self.gate(found), dim=-1)
        return x + found.transpose(self._axis, -1)


class MixerLayer(nn.Module):
    """Mixes patches, then features; channels first where there are several to mix."""

    def __init__(self, patches: int, features: int, *, channels: int = 0, dropout: float) -> None:
        super().__init__()
        axes = [(channels, 1)] if channels else []
        axes += [(patches, 2), (features, 3)]
        self.mixers = nn.Sequential(
            *(Mixer(size, features, axis=axis, dropout=dropout) for size, axis in axes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixers(x)


class Level(nn.Module):
    """Layers that see each patch as several narrower ones."""

    def __init__(self, patches: int, features: int, *, split: int, layers: int, dropout: float) -> None:
        super().__init__()
        self._split = split
        self.layers = nn.Sequential(
            *(MixerLayer(patches * split, features // split, dropout=dropout) for _ in range(layers))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = x.unflatten(-1, (self._split, -1)).flatten(2, 3)
        return self.layers(narrow).unflatten(2, (-1, self._split)).flatten(3)


class TinyTimeMixer(Forecaster):
    """(rows, context, channels) to (rows, horizon, channels)."""

    def __init__(
        self,
        channels: int,
        context: int,
        horizon: int,
        *,
        patch: int,
        width: int,
        levels: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self._patch = patch
        patches, narrow = context // patch, width // 2
        self.patcher = nn.Linear(patch, width)
        self.encoder = nn.Sequential(
            *(
                Level(patches, width, split=2**at, layers=layers, dropout=dropout)
                for at in reversed(range(levels))
            )
        )
        self.adapter = nn.Linear(width, narrow)
        self.decoder = MixerLayer(patches, narrow, channels=channels, dropout=dropout)
        self.head = nn.Linear(patches * narrow, horizon)

    def predict(self, past_values: torch.Tensor) -> torch.Tensor:
        scale = scale_of(past_values)
        past = (past_values / scale).transpose(1, 2).unflatten(-1, (-1, self._patch))
        mixed = self.decoder(self.adapter(self.encoder(self.patcher(past))))
        return self.head(mixed.flatten(2)).transpose(1, 2) * scale


def build(
    channels: int = 3,
    context: int = 32,
    horizon: int = 8,
    patch: int = 4,
    width: int = 16,
    levels: int = 2,
    layers: int = 1,
    dropout: float = 0.1,
) -> nn.Module:
    """The paper's smallest reads 512 values in patches of 64, on three levels of two layers."""
    module = TinyTimeMixer(
        channels, context, horizon, patch=patch, width=width, levels=levels, layers=layers, dropout=dropout
    )
    module.example_inputs = {
        "past_values": wave(2, context, channels),
        "future_values": wave(2, horizon, channels),
    }
    return module
