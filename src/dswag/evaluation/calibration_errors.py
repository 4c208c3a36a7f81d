"""Calibration of every class, without bins, and how much of the binned error chance alone explains.

The binned `expected_calibration_error` is biased: with few examples in a bin, accuracy misses confidence by chance, so
that a calibrated model has an error above 0, which grows with the number of bins. `chance_error` says how much;
`smooth_calibration_error` has no bins to choose.
"""

import math

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dswag.core.arrays import as_tensor
from dswag.evaluation.alignment import aligned
from dswag.evaluation.reliability import Binning, binned, bins_of

GRID = 1 << 12
"""Intervals of [0, 1] for the smooth error; a residual is split between the two ends of its interval."""


def classwise_calibration_error(
    probabilities: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    *,
    bins: int = 20,
    binning: Binning = "equal-mass",
) -> float:
    """Mean over the classes of |probability of the class - its frequency| in bins of that probability; in [0, 1].

    All probabilities count and not only the largest ones, so that it also sees the classes that are not predicted.

    Source: Kull et al. 2019, Section 3; with equal width the static calibration error of Nixon et al. 2019.

    Raises:
        ValueError: what `reliability` raises.
    """
    probabilities, targets = aligned(probabilities, targets)
    classes = range(probabilities.shape[1])
    return sum(binned(probabilities[:, c], targets == c, bins, binning).error for c in classes) / len(classes)


def smooth_calibration_error(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> float:
    """The smooth ECE of the confidences, in [0, 1]: σ such that the error smoothed over a width of σ is σ.

    The smoothed error is ∫ |1/n Σ_i (right_i - confidence_i) K(confidence_i, t)| dt with the Gaussian kernel K of
    standard deviation σ, reflected at 0 and 1. It falls as σ grows, so that one σ equals it. Up to a factor of 2 it is
    the distance to the nearest calibrated predictor, and unlike with bins, a small change of the probabilities changes
    it little.

    Source: Błasiok & Nakkiran 2023, Definitions 3 and 4.

    Raises:
        ValueError: predictions that `alignment.aligned` refuses.
    """
    probabilities, targets = aligned(probabilities, targets)
    confidence, predicted = probabilities.max(1)
    residual = ((predicted == targets).double() - confidence.double()).cpu()
    spectrum = _cosines(confidence.double().cpu().clamp(0, 1), residual)
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _smoothed(spectrum, middle) > middle else (low, middle)
    return (low + high) / 2


def chance_error(probabilities: Float[Tensor, "n c"], *, bins: int = 20, binning: Binning = "equal-mass") -> float:
    """The binned calibration error that is expected if every confidence were exactly the chance of being right.

    In a bin of m examples, accuracy then misses confidence by √(2 Σ p (1 - p) / π) / m on average: the number of right
    ones is a sum of independent coins, taken as normal. An `expected_calibration_error` near this says nothing against
    a model.

    Raises:
        ValueError: what `reliability` raises.
    """
    values = as_tensor(probabilities)
    confidence = values.reshape(-1, values.shape[-1]).amax(1).cpu().sort().values
    p = confidence.double()
    spread = bins_of(confidence, bins, binning).bincount(p * (1 - p), minlength=bins)
    return float((2 * spread / math.pi).sqrt().sum()) / len(p)


def _cosines(places: Float64[Tensor, "n"], values: Float64[Tensor, "n"]) -> Float64[Tensor, "k"]:
    """1/n Σ_i value_i cos(k π place_i) for k = 0, 1, ..., from values that are split between two points of a grid."""
    position = places * GRID
    below = position.floor().clamp_max(GRID - 1).long()
    share = position - below
    grid = below.bincount(values * (1 - share), minlength=GRID + 1)
    grid += (below + 1).bincount(values * share, minlength=GRID + 1)
    mirrored = torch.cat([grid, grid[1:-1].flip(0)])
    mirrored[[0, GRID]] *= 2  # the two ends are not mirrored
    spectrum: Tensor = torch.fft.rfft(mirrored).real / (2 * len(values))
    return spectrum


def _smoothed(spectrum: Float64[Tensor, "k"], width: float) -> float:
    """∫ |values smoothed by the reflected kernel| dt: heat in a rod, whose k-th cosine fades as exp(-(σ k π)²/2)."""
    k = torch.arange(GRID + 1, dtype=torch.float64)
    faded = spectrum * torch.exp(-((width * math.pi * k) ** 2) / 2)
    faded[1:] *= 2
    ends = torch.fft.irfft(faded.to(torch.complex128) / 2, n=2 * GRID, norm="forward")  # at the grid's points, mirrored
    heights = (ends[: GRID + 1] + faded[0] / 2).abs()
    return float(heights[1:].sum() + heights[:-1].sum()) / (2 * GRID)
