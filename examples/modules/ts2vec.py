"""TS2Vec: representations of time series, learnt without labels.

Yue et al.: TS2Vec: Towards Universal Representation of Time Series (AAAI 2022). An encoder of dilated
convolutions sees two crops of each series that overlap, with some of the times masked. What it says of a time
in one crop is to be recognised in the other, among the other times (temporal contrast) and the other series
of the batch (instance contrast); then the same again of ever coarser times.
"""

from __future__ import annotations

import random

import torch
from torch import nn

from .waves import wave

KEPT = 0.5
"""Share of the times that a crop shows."""


class ConvolutionBlock(nn.Module):
    """Two convolutions of one dilation with a residual path."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(after, after, 3, padding=dilation, dilation=dilation)
        self.projector = nn.Identity() if before == after else nn.Conv1d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.conv1(nn.functional.gelu(x))
        return self.conv2(nn.functional.gelu(found)) + self.projector(x)


class Encoder(nn.Module):
    """(rows, times, channels) to (rows, times, width)."""

    def __init__(self, channels: int, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.input_projection = nn.Linear(channels, hidden)
        sizes = [hidden] * (depth + 1) + [width]
        self.blocks = nn.Sequential(
            *(ConvolutionBlock(sizes[at], sizes[at + 1], 2**at) for at in range(depth + 1))
        )
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, *, is_masked: bool) -> torch.Tensor:
        latent = self.input_projection(x)
        if is_masked:
            latent = latent * (torch.rand(latent.shape[:2], device=x.device) < KEPT)[..., None]
        return self.dropout(self.blocks(latent.transpose(1, 2))).transpose(1, 2)


class TS2Vec(nn.Module):
    """(rows, times, channels) to ``loss`` and ``representations``.

    The length of the crops is fixed and only their places are drawn: every step needs about the same memory.
    In evaluation nothing is masked and crops lie as far apart as they can: the loss is the same each time.
    """

    def __init__(self, channels: int, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, hidden, depth)
        self._places = random.Random(0)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        times = x.shape[1]
        crop = times * 3 // 4
        shift = self._places.randint(1, times - crop) if self.training else times - crop
        left = self.encoder(x[:, :crop], is_masked=self.training)
        right = self.encoder(x[:, shift : shift + crop], is_masked=self.training)
        loss = hierarchical_loss(left[:, shift:], right[:, : crop - shift])
        return {"loss": loss, "representations": left}


def hierarchical_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The mean of both contrasts over times, pairs of times, fours of times … up to the whole crop."""
    losses = []
    while True:
        terms = []
        if first.shape[0] > 1:
            terms.append(contrast(first.transpose(0, 1), second.transpose(0, 1)))  # among rows
        if first.shape[1] > 1:
            terms.append(contrast(first, second))  # among times
        losses += [torch.stack(terms).mean()] if terms else []
        if first.shape[1] == 1:
            return torch.stack(losses).mean()
        first, second = (
            nn.functional.max_pool1d(side.transpose(1, 2), 2).transpose(1, 2) for side in (first, second)
        )


def contrast(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How badly each of ``n`` things is told from the others: both sides are (batches, n, width)."""
    count = first.shape[1]
    both = torch.cat([first, second], dim=1)
    likeness = both @ both.transpose(1, 2)
    others = likeness.tril(-1)[:, :, :-1] + likeness.triu(1)[:, :, 1:]  # without that to itself
    scores = -nn.functional.log_softmax(others, dim=-1)
    at = torch.arange(count, device=first.device)
    return (scores[:, at, count + at - 1].mean() + scores[:, count + at, at].mean()) / 2


def build(channels: int = 3, times: int = 32, width: int = 32, hidden: int = 16, depth: int = 3) -> nn.Module:
    """An encoder of ``depth + 1`` blocks; the paper has eleven of them, 64 wide, and 320 features."""
    module = TS2Vec(channels, width, hidden, depth)
    module.example_inputs = {"x": wave(2, times, channels)}
    return module
