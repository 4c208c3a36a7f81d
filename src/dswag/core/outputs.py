"""What a model for regressions returns."""

from typing import Any

import torch
from torch import Tensor


def mean_and_noise(output: Any, noise: float | None) -> tuple[Tensor, Tensor]:
    """Means and variances of the targets, as the model gives them or with the noise that is given."""
    if isinstance(output, tuple | list) and len(output) == 2:
        mean, variance = (part.double() for part in output)
        if mean.shape != variance.shape:
            raise ValueError(
                f"means and variances must have one shape, got {list(mean.shape)} and {list(variance.shape)}"
            )
        if (variance < 0).any():
            raise ValueError("the model returned negative variances: let it return (means, variances)")
        return mean, variance
    if noise is None:
        raise ValueError("the model returns means alone: pass noise=..., the variance of the targets around them")
    if not isinstance(output, Tensor):
        raise ValueError(f"the model must return means [b, ...], or (means, variances), got {type(output).__name__}")
    mean = output.double()
    return mean, torch.full_like(mean, noise)
