"""TiDE: forecasts by dense layers alone.

Das et al.: Long-term Forecasting with TiDE: Time-series Dense Encoder (TMLR 2023), without its covariates.
Each channel's past is encoded and decoded by residual blocks, a small decoder shared by all times makes
numbers of it, and a linear path from past to future is added.
"""

from __future__ import annotations

import torch
from torch import nn

from .forecasts import Forecaster
from .waves import wave


class ResidualBlock(nn.Module):
    """A hidden layer beside a linear path, normalised together."""

    def __init__(self, before: int, hidden: int, after: int, dropout: float) -> None:
        super().__init__()
        self.dense_in = nn.Linear(before, hidden)
        self.dense_out = nn.Linear(hidden, after)
        self.skip = nn.Linear(before, after)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.dropout(self.dense_out(nn.functional.relu(self.dense_in(x))))
        return self.norm(found + self.skip(x))


class TiDE(Forecaster):
    """(rows, context, channels) to (rows, horizon, channels), each channel by itself."""

    def __init__(
        self, context: int, horizon: int, *, hidden: int, layers: int, step_width: int, dropout: float
    ) -> None:
        super().__init__()
        self._horizon, self._step_width = horizon, step_width
        sizes = [context] + [hidden] * layers
        self.encoder = nn.Sequential(
            *(ResidualBlock(sizes[at], hidden, hidden, dropout) for at in range(layers))
        )
        ends = [hidden] * (layers - 1) + [horizon * step_width]
        self.decoder = nn.Sequential(*(ResidualBlock(hidden, hidden, end, dropout) for end in ends))
        self.temporal_decoder = ResidualBlock(step_width, hidden, 1, dropout)
        self.temporal_decoder.norm = nn.Identity()  # of a single number nothing would be left
        self.global_residual = nn.Linear(context, horizon)

    def predict(self, past_values: torch.Tensor) -> torch.Tensor:
        past = past_values.transpose(1, 2)
        latent = self.decoder(self.encoder(past)).unflatten(-1, (self._horizon, self._step_width))
        future = self.temporal_decoder(latent)[..., 0] + self.global_residual(past)
        return future.transpose(1, 2)


def build(
    channels: int = 3,
    context: int = 32,
    horizon: int = 8,
    hidden: int = 32,
    layers: int = 2,
    step_width: int = 4,
    dropout: float = 0.1,
) -> nn.Module:
    """The paper's hidden layers are 256 to 1024 wide, one to three of them each way."""
    module = TiDE(context, horizon, hidden=hidden, layers=layers, step_width=step_width, dropout=dropout)
    module.example_inputs = {
        "past_values": wave(2, context, channels),
        "future_values": wave(2, horizon, channels),
    }
    return module
