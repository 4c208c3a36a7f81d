"""Random changes of a batch of images, each one operation on the whole batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Generator, Tensor


@dataclass(frozen=True)
class CropAndFlip:
    """Shifts every image by up to `padding` pixels each way, filling with zeros, and mirrors half of them.

    The usual augmentation of CIFAR: a random crop of the zero-padded image, then a horizontal flip with probability
    1/2. Works on images of any type; the generator may live on another device than they do.

    Raises:
        ValueError: negative padding, or a batch that is not of shape [b, c, h, w].
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, got {self.padding}")

    def __call__(self, images: Shaped[Tensor, "b c h w"], generator: Generator) -> Shaped[Tensor, "b c h w"]:
        """The batch, cropped and flipped."""
        if images.ndim != 4:
            raise ValueError(f"images must have shape [b, c, h, w], got {list(images.shape)}")
        b, c, h, w = images.shape
        device, drawn_on = images.device, generator.device
        shifts = torch.randint(2 * self.padding + 1, (2, b, 1), generator=generator, device=drawn_on)
        mirrored = torch.randint(2, (b, 1), generator=generator, device=drawn_on).bool()
        shifts, mirrored = (drawn.to(device, non_blocking=True) for drawn in (shifts, mirrored))
        rows = shifts[0] + torch.arange(h, device=device)
        columns = shifts[1] + torch.arange(w, device=device)
        columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (self.padding,) * 4)
        pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
        return padded.flatten(2).gather(2, pixels.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)
