"""Scores of predictive means and variances, taken as those of a Gaussian; of `dswag.regression`, or any other.

A mixture over draws is no Gaussian, but has this mean and variance; the scores are those of the Gaussian that has them.
All take tensors, NumPy arrays or lists; every number is an example, and sums are taken in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core.arrays import as_tensor

LEVELS = tuple(step / 10 for step in range(1, 10))


def score(
    mean: Float[Tensor, "n ..."], variance: Float[Tensor, "n ..."], targets: Float[Tensor, "n ..."]
) -> "RegressionScores":
    """All scores of one set of predictions.

    Raises:
        ValueError: shapes that differ, as [n] and [n, 1] do; no numbers; NaN or infinity; a negative variance; or one
            of 0, at which a Gaussian has no density. So does every function of this module, where it matters.
    """
    mean, variance, targets = _paired(mean, variance, targets)
    return RegressionScores(
        rmse=float((targets - mean).square().mean().sqrt()),
        nll=nll(mean, variance, targets),
        crps=crps(mean, variance, targets),
        coverage_90=coverage(mean, variance, targets, [0.9])[0],
        num_examples=len(targets),
    )


def nll(mean: Float[Tensor, "n ..."], variance: Float[Tensor, "n ..."], targets: Float[Tensor, "n ..."]) -> float:
    """Mean negative log density of the targets, ½ (ln 2πv + (y - m)²/v), in nats."""
    mean, variance, targets = _paired(mean, variance, targets)
    if bool((variance == 0).any()):
        raise ValueError("a variance of 0 has no density: pass noise=..., the variance of the targets")
    return float(((2 * math.pi * variance).log() + (targets - mean).square() / variance).mean() / 2)


def crps(mean: Float[Tensor, "n ..."], variance: Float[Tensor, "n ..."], targets: Float[Tensor, "n ..."]) -> float:
    """Mean continuous ranked probability score, ∫ (F(x) - [y ≤ x])² dx, in the unit of the targets.

    With z = (y - m)/σ it is σ (z (2 Φ(z) - 1) + 2 φ(z) - 1/√π), and |y - m| where σ is 0.

    Source: Gneiting & Raftery 2007, equation 21 with the sign turned.
    """
    mean, variance, targets = _paired(mean, variance, targets)
    std = variance.sqrt()
    z = torch.where(std > 0, (targets - mean) / std, 0.0)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    scores = std * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    return float(torch.where(std > 0, scores, (targets - mean).abs()).mean())


def coverage(
    mean: Float[Tensor, "n ..."],
    variance: Float[Tensor, "n ..."],
    targets: Float[Tensor, "n ..."],
    levels: Sequence[float] = LEVELS,
) -> tuple[float, ...]:
    """For each level, the share of targets in the central interval that should hold this share; calibrated if equal.

    Source: Kuleshov, Fenner & Ermon 2018, Section 3, with central intervals.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if any(not 0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie between 0 and 1, got {list(levels)}")
    mean, variance, targets = _paired(mean, variance, targets)
    half = torch.special.ndtri((1 + torch.tensor(levels, dtype=torch.float64)) / 2)
    distance = (targets - mean).abs()
    return tuple(float((distance <= width * variance.sqrt()).double().mean()) for width in half.tolist())


@dataclass(frozen=True)
class RegressionScores:
    """Scores of one set of predictions; lower is better, except for the coverage, which should be 0.9."""

    rmse: float
    nll: float
    crps: float
    coverage_90: float
    """Share of the targets within the central 90 % interval."""
    num_examples: int


def _paired(mean: Tensor, variance: Tensor, targets: Tensor) -> tuple[Float64[Tensor, "m"], ...]:
    named = {"mean": mean, "variance": variance, "targets": targets}
    tensors = {name: as_tensor(values) for name, values in named.items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len(set(map(tuple, shapes.values()))) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"mean, variance and targets must have one shape, got {found}: reshape the targets")
    flat = {name: tensor.double().reshape(-1).cpu() for name, tensor in tensors.items()}
    for name, values in flat.items():
        if not len(values):
            raise ValueError("there is nothing to score: give at least one example")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} must be finite, got {float(values[~torch.isfinite(values)][0])}")
    if bool((flat["variance"] < 0).any()):
        raise ValueError(f"variance must not be negative, got {float(flat['variance'].min()):.4g}")
    return flat["mean"], flat["variance"], flat["targets"]
