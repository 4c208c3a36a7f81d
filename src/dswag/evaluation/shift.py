"""Test images corrupted in known ways and strengths, to see how good predictions are if the data have shifted.

Four of the kinds of Hendrycks & Dietterich 2019, computed here at strengths that suit images of about 30 pixels. A
corruption is a function (images in [0, 1], strength, generator) -> images; to add one, write it and add it to
`CORRUPTIONS`.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from dswag.core.choices import check_choice
from dswag.core.randomness import generator_for

STRENGTHS = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, int, Generator], Tensor]
"""Maps images [n, c, h, w] in [0, 1] and a strength to images of the same shape."""

NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Standard deviations of the noise, on the scale where white is 1."""
BLUR = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Standard deviations of the Gaussian kernel, in pixels."""
ROTATION = (10.0, 20.0, 30.0, 45.0, 60.0)
"""Degrees."""
CONTRAST = (0.75, 0.5, 0.35, 0.2, 0.1)
"""What remains of each pixel's distance from the mean of its image."""


def corrupt(
    images: UInt8[Tensor, "n c h w"], corruption: str, strength: int, *, seed: int = 0
) -> UInt8[Tensor, "n c h w"]:
    """The images with a corruption named in `CORRUPTIONS` at a strength from 1 to 5, a function of the seed.

    Raises:
        ValueError: an unknown corruption or strength, or images of another type or shape.
    """
    check_choice("corruption", corruption, CORRUPTIONS)
    if strength not in STRENGTHS:
        raise ValueError(f"strength must be a whole number from 1 to {len(STRENGTHS)}, got {strength!r}")
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"images must be uint8 [n, c, h, w], got {images.dtype} {list(images.shape)}")
    changed = CORRUPTIONS[corruption](images.float() / 255, strength, generator_for(seed, strength))
    return (255 * changed).round_().clamp_(0, 255).to(torch.uint8)


def noise(images: Float[Tensor, "n c h w"], strength: int, generator: Generator) -> Float[Tensor, "n c h w"]:
    """Independent Gaussian noise on every pixel."""
    drawn = torch.randn(images.shape, generator=generator).to(images.device)
    return images + NOISE[strength - 1] * drawn


def blur(images: Float[Tensor, "n c h w"], strength: int, generator: Generator) -> Float[Tensor, "n c h w"]:
    """Convolution with a Gaussian cut off at four standard deviations; beyond the border the edge pixels go on."""
    sigma = BLUR[strength - 1]
    radius = round(4 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=images.device) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    n, c, h, w = images.shape
    padded = F.pad(images.reshape(n * c, 1, h, w), (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred.view(n, c, h, w)


def rotation(images: Float[Tensor, "n c h w"], strength: int, generator: Generator) -> Float[Tensor, "n c h w"]:
    """About the center, left or right by the toss of a coin, with bilinear interpolation and black corners."""
    side = 2 * torch.randint(2, (len(images),), generator=generator).to(images.device) - 1
    angle = side * math.radians(ROTATION[strength - 1])
    cos, sin = angle.cos(), angle.sin()
    h, w = images.shape[2:]
    zero = torch.zeros_like(cos)
    turn = torch.stack([cos, -sin * h / w, zero, sin * w / h, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def contrast(images: Float[Tensor, "n c h w"], strength: int, generator: Generator) -> Float[Tensor, "n c h w"]:
    """Every pixel moved towards the mean of its image."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + CONTRAST[strength - 1] * (images - mean)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {"noise": noise, "blur": blur, "rotation": rotation, "contrast": contrast}
)
"""Every corruption by its name."""
