"""What the forecasters have in common: how they are called, and what they answer."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn


class Forecaster(nn.Module):
    """Called as transformers' forecasting models are: past and future are (rows, times, channels)."""

    def forward(
        self, past_values: torch.Tensor, future_values: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The forecast, and its mean squared error where the future is known."""
        prediction = self.predict(past_values)
        answer = {"prediction_outputs": prediction}
        if future_values is not None:
            answer["loss"] = nn.functional.mse_loss(prediction, future_values)
        return answer

    @abstractmethod
    def predict(self, past_values: torch.Tensor) -> torch.Tensor:
        """The future that follows this past."""


def scale_of(past_values: torch.Tensor) -> torch.Tensor:
    """How large the numbers of each channel are on average, never nothing: (rows, 1, channels)."""
    return past_values.abs().mean(1, keepdim=True).clamp(min=1e-5)
