"""PatchTSMixer, as transformers has it: an MLP-mixer over patches.

Ekambaram et al.: TSMixer: Lightweight MLP-Mixer Model for Multivariate Time Series Forecasting (KDD 2023).
"""

from __future__ import annotations

from torch import nn
from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

from .waves import wave


def build(
    channels: int = 3, context: int = 32, horizon: int = 8, patch: int = 4, width: int = 16, layers: int = 2
) -> nn.Module:
    """The paper's forecasters read 512 values in patches of 16."""
    config = PatchTSMixerConfig(
        num_input_channels=channels,
        context_length=context,
        prediction_length=horizon,
        patch_length=patch,
        patch_stride=patch,
        d_model=width,
        num_layers=layers,
        loss="mse",
    )
    module: nn.Module = PatchTSMixerForPrediction(config)
    module.example_inputs = {
        "past_values": wave(2, context, channels),
        "future_values": wave(2, horizon, channels),
    }
    return module
