"""Normalization of images as the first layer of a model, so that it travels with the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x / 255 - mean) / std for each channel of uint8 images [b, channels, height, width].

    The outcome has its channels last in memory, which the convolutions that follow are faster on.

    Args:
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", scale.float().view(-1, 1, 1))
        self.register_buffer("shift", shift.float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The images as normalized float32."""
        return (images.contiguous(memory_format=torch.channels_last) * self.scale).sub_(self.shift)
