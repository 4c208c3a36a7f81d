"""Class probabilities made softer or sharper (Guo et al. 2017, applied to averaged predictions)."""

import torch
from jaxtyping import Float
from torch import Tensor


def temper(probabilities: Float[Tensor, "n c"], temperature: float) -> Float[Tensor, "n c"]:
    """softmax(ln p / T): softer above 1, sharper below, unchanged at 1; the order of the classes stays.

    A probability of 0 counts as the smallest normal number of its dtype.
    """
    if temperature == 1:
        return probabilities
    tiny = torch.finfo(probabilities.dtype).tiny
    return (probabilities.clamp_min(tiny).log() / temperature).softmax(1)
