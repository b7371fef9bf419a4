"""Heat maps from a ViT: for each pixel, how likely it shows what is looked for.

The task of TrackNet (Huang et al.: TrackNet: A Deep Learning Network for Tracking High-speed and Tiny Objects
in Sports Applications, AVSS 2019) on the backbone of Dosovitskiy et al. (An Image is Worth 16x16 Words, ICLR
2021): the patches' features become a small image again, which the head enlarges.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from .waves import wave


class HeatMapHead(nn.Module):
    """(rows, width, height / patch, width / patch) to (rows, maps, height, width)."""

    def __init__(self, width: int, maps: int, patch: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(width, width // 2, patch, stride=patch)
        self.smooth = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.score = nn.Conv2d(width // 2, maps, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = nn.functional.gelu(self.upsample(x))
        return self.score(nn.functional.gelu(self.smooth(found)))


class ViTHeatMap(nn.Module):
    """(rows, channels, height, width) to ``logits`` of the same height and width."""

    def __init__(self, config: ViTConfig, maps: int) -> None:
        super().__init__()
        self.backbone = ViTModel(config, add_pooling_layer=False)
        self.head = HeatMapHead(config.hidden_size, maps, config.patch_size)
        self._side = config.image_size // config.patch_size

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """``labels`` are heat maps between 0 and 1; with them there is a loss."""
        patches = self.backbone(pixel_values).last_hidden_state[:, 1:]  # the first stands for the whole image
        image = patches.transpose(1, 2).unflatten(-1, (self._side, self._side))
        logits = self.head(image)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        return {"loss": loss, "logits": logits}


def build(
    image_size: int = 16,
    patch: int = 4,
    channels: int = 3,
    maps: int = 1,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
) -> nn.Module:
    """ViT-Base is 768 wide, has twelve layers and heads, and patches of 16 of an image of 224 pixels."""
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch,
        num_channels=channels,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    module = ViTHeatMap(config, maps)
    module.example_inputs = {
        "pixel_values": wave(2, channels, image_size, image_size),
        "labels": wave(2, maps, image_size, image_size).add(1).div(2),
    }
    return module
