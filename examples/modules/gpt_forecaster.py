"""A decoder that forecasts: GPT-2 over patches of numbers.

TimeGPT (Garza, Challu and Mergenthaler-Canseco, 2023) is closed; this is what is known of it and its like: a
GPT's blocks between a projection of values and one to the forecast. transformers' GPT-2 has its matrices in
``Conv1D``, transposed linear layers.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from .forecasts import Forecaster, scale_of
from .waves import wave


class GPTForecaster(Forecaster):
    """(rows, context, channels) to (rows, horizon, channels), each channel by itself."""

    def __init__(
        self, context: int, horizon: int, *, patch: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self._patch = patch
        config = GPT2Config(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            n_positions=context // patch,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            use_cache=False,
        )
        self.value_projection = nn.Linear(patch, width)
        self.decoder = GPT2Model(config)
        self.decoder.set_input_embeddings(nn.Identity())  # there are no tokens to look up
        self.forecast_head = nn.Linear(width, horizon)

    def predict(self, past_values: torch.Tensor) -> torch.Tensor:
        scale = scale_of(past_values)
        past = (past_values / scale).transpose(1, 2)
        rows, channels, _ = past.shape
        patches = past.flatten(0, 1).unflatten(-1, (-1, self._patch))
        hidden = self.decoder(inputs_embeds=self.value_projection(patches)).last_hidden_state
        future = self.forecast_head(hidden[:, -1]).unflatten(0, (rows, channels))
        return future.transpose(1, 2) * scale


def build(
    channels: int = 3,
    context: int = 32,
    horizon: int = 8,
    patch: int = 4,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
) -> nn.Module:
    """GPT-2's own sizes are 768 wide and 12 layers."""
    module = GPTForecaster(context, horizon, patch=patch, width=width, layers=layers, heads=heads)
    module.example_inputs = {
        "past_values": wave(2, context, channels),
        "future_values": wave(2, horizon, channels),
    }
    return module
