"""PatchTST, as transformers has it: a transformer over patches of each channel.

Nie et al.: A Time Series is Worth 64 Words: Long-term Forecasting with Transformers (ICLR 2023).
"""

from __future__ import annotations

from torch import nn
from transformers import PatchTSTConfig, PatchTSTForPrediction

from .waves import wave


def build(
    channels: int = 3,
    context: int = 32,
    horizon: int = 8,
    patch: int = 4,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
) -> nn.Module:
    """The paper's model is 128 wide, with three layers and 16 heads."""
    config = PatchTSTConfig(
        num_input_channels=channels,
        context_length=context,
        prediction_length=horizon,
        patch_length=patch,
        patch_stride=patch,
        d_model=width,
        ffn_dim=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        loss="mse",
    )
    module: nn.Module = PatchTSTForPrediction(config)
    module.example_inputs = {
        "past_values": wave(2, context, channels),
        "future_values": wave(2, horizon, channels),
    }
    return module
