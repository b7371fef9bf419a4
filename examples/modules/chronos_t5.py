"""Chronos: a T5 that reads and writes numbers as words.

Ansari et al.: Chronos: Learning the Language of Time Series (TMLR 2024). Values are divided by the mean of
their absolutes and fall into bins of equal width; T5 learns the bins of the future from those of the past.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from .forecasts import scale_of
from .waves import wave

LIMIT = 15.0
"""Scaled values beyond it fall into the outermost bins, as in the paper."""
PAD, END = 0, 1
SPECIAL_TOKENS = 2


class ChronosT5(nn.Module):
    """(rows, context, channels) to (rows, horizon, channels), each channel by itself.

    Where the future is known, each of its values is foretold from those before it; where it is not, from what
    was foretold.
    """

    def __init__(self, horizon: int, *, bins: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self._horizon = horizon
        config = T5Config(
            vocab_size=bins + SPECIAL_TOKENS,
            d_model=width,
            d_kv=width // heads,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=heads,
            feed_forward_proj="relu",
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
            use_cache=False,
        )
        self.t5 = T5ForConditionalGeneration(config)
        centres = torch.linspace(-LIMIT, LIMIT, bins)
        self.register_buffer("centres", centres)
        self.register_buffer("edges", (centres[1:] + centres[:-1]) / 2)

    def forward(
        self, past_values: torch.Tensor, future_values: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The forecast, and how unlikely T5 took the future's bins where these are known."""
        scale = scale_of(past_values)
        past = self.tokens(past_values / scale)
        if future_values is None:
            return {"prediction_outputs": self.values(self.continued(past), scale)}
        labels = self.tokens(future_values / scale)
        told = self.t5(input_ids=past, labels=labels)
        chosen = told.logits[..., SPECIAL_TOKENS:].argmax(-1) + SPECIAL_TOKENS
        return {"loss": told.loss, "prediction_outputs": self.values(chosen, scale)}

    def tokens(self, scaled: torch.Tensor) -> torch.Tensor:
        """(rows, times, channels) to (rows × channels, times)."""
        series = scaled.transpose(1, 2).flatten(0, 1).contiguous()
        return torch.bucketize(series, self.edges) + SPECIAL_TOKENS

    def values(self, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The centres of the bins, in the size of the past."""
        rows, _, channels = scale.shape
        series = self.centres[tokens - SPECIAL_TOKENS].unflatten(0, (rows, channels))
        return series.transpose(1, 2) * scale

    def continued(self, past: torch.Tensor) -> torch.Tensor:
        """The likeliest bin at each time of the horizon, one after the other."""
        written = torch.full((past.shape[0], 1), PAD, device=past.device)
        encoded = self.t5.encoder(input_ids=past)
        for _ in range(self._horizon):
            logits = self.t5(encoder_outputs=encoded, decoder_input_ids=written).logits[:, -1]
            best = logits[:, SPECIAL_TOKENS:].argmax(-1, keepdim=True) + SPECIAL_TOKENS
            written = torch.cat([written, best], dim=1)
        return written[:, 1:]


def build(
    channels: int = 1,
    context: int = 32,
    horizon: int = 8,
    bins: int = 126,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
) -> nn.Module:
    """The paper has 4,094 bins, and T5's own sizes from 16 million parameters up."""
    module = ChronosT5(horizon, bins=bins, width=width, layers=layers, heads=heads)
    module.example_inputs = {
        "past_values": wave(2, context, channels),
        "future_values": wave(2, horizon, channels),
    }
    return module
