"""Modules put together by chance, for what has to hold of any: ``rankwise inspect random_modules:build``."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn

SIZES = (4, 6, 8, 12, 16, 24)


class Attention(nn.Module):
    """Attention with projections of its own, named in one of the usual ways or in none."""

    def __init__(self, width: int, names: tuple[str, str, str, str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value, output = (getattr(self, name) for name in self.names)
        return output(torch.softmax(query(x) @ key(x).mT, -1) @ value(x))


class PackedAttention(nn.Module):
    """PyTorch's own attention, of a sequence to itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x)[0]


class Residual(nn.Module):
    """What is inside, beside it a way past."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


class OverTime(nn.Module):
    """A convolution over the second axis of (batch, time, width)."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.mT).mT


class Network(nn.Module):
    """A body, a head, and perhaps a layer that nothing calls."""

    def __init__(self, body: list[nn.Module], width: int, *, classes: int, with_idle: bool) -> None:
        super().__init__()
        self.body = nn.ModuleList(body)
        self.head = nn.Linear(width, classes)
        if with_idle:
            self.idle = nn.Linear(width, width)
        self.example_inputs = {"x": torch.randn(2, 16, width)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.body:
            x = part(x)
        return self.head(x.mean(1))


NAMES = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("fc_q", "fc_k", "fc_v", "fc_o"),
    ("to_q", "to_k", "to_v", "to_out"),
    ("first", "second", "third", "last"),
)


def build(seed: int) -> nn.Module:
    """The same module for the same seed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    width = draw.choice(SIZES)
    if draw.random() < 0.2:
        return image_network(draw)
    if draw.random() < 0.1:
        return nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Sequential(nn.Linear(12, 3)))
    parts: list[Callable[[], nn.Module]] = [
        lambda: Residual(Attention(width, draw.choice(NAMES))),
        lambda: Residual(PackedAttention(width)),
        lambda: Residual(nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))),
        lambda: OverTime(nn.Conv1d(width, width, 3, padding="same", dilation=draw.choice((1, 2)))),
        lambda: OverTime(nn.Conv1d(width, width, 3, padding=1, groups=width)),
        lambda: nn.LayerNorm(width),
        lambda: OverTime(nn.ConvTranspose1d(width, width, 3, padding=1)),
        lambda: nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True),
    ]
    body = [draw.choice(parts)() for _ in range(draw.randint(1, 4))]
    if draw.random() < 0.15:
        return nn.Sequential(*(part for part in body))
    return Network(body, width, classes=draw.randint(1, 5), with_idle=draw.random() < 0.3)


def image_network(draw: random.Random) -> nn.Module:
    """Convolutions over images, some in groups, with a linear layer at the end or none."""
    channels = draw.choice((4, 8, 16))
    layers: list[nn.Module] = [
        nn.Conv2d(draw.choice((1, 3)), channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    if draw.random() < 0.5:
        layers.append(nn.Conv2d(channels, channels, 3, groups=draw.choice((2, channels))))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if draw.random() < 0.6:
        layers.append(nn.Linear(channels, 5))
    return nn.Sequential(*layers)
