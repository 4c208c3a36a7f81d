"""Accuracy and proper scores of predicted probabilities (Section 6)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dswag.evaluation.reliability import check_predictions, expected_calibration_error


def score(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"], bins: int = 20) -> "Scores":
    """All scores of one set of predictions.

    Raises:
        ValueError: predictions that `calibration.check_predictions` refuses, as from every function of this module.
    """
    return Scores(
        accuracy=accuracy(probabilities, targets),
        nll=nll(probabilities, targets),
        brier=brier(probabilities, targets),
        ece_equal_mass=expected_calibration_error(probabilities, targets, bins=bins, binning="equal-mass"),
        ece_equal_width=expected_calibration_error(probabilities, targets, bins=bins, binning="equal-width"),
        num_examples=len(targets),
    )


def accuracy(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> float:
    """Share of examples whose most probable class is the target, in [0, 1]; of tied classes the first is predicted."""
    check_predictions(probabilities, targets)
    return int((probabilities.argmax(dim=1) == targets).sum()) / len(targets)


def nll(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> float:
    """Mean negative log-likelihood of the targets, in nats, at least 0."""
    return float(nll_of_each(probabilities, targets).mean())


def nll_of_each(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """Negative log-likelihood of every target, in nats.

    A probability counts as no smaller than the smallest positive normal number of its dtype. One example thus has at
    most 87.3 in float32 and bfloat16, 708.4 in float64 and 9.7 in float16, and a probability of 0 gives a finite one.
    """
    check_predictions(probabilities, targets)
    likelihood = probabilities.gather(1, targets[:, None]).cpu().double()[:, 0]
    smallest = torch.finfo(probabilities.dtype).smallest_normal
    return -likelihood.clamp(smallest, 1.0).log()


def brier(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> float:
    """Brier score over all classes, mean of Σ_c (p_c - [c = target])², in [0, 2].

    Source: Brier 1950. The two-class form over one probability, in [0, 1], is half of it.
    """
    check_predictions(probabilities, targets)
    errors = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32), copy=True)
    errors.scatter_add_(1, targets[:, None], errors.new_full((len(targets), 1), -1.0))
    return float(errors.square_().sum(dim=1).cpu().double().mean())


@dataclass(frozen=True)
class Scores:
    """Scores of one method on one set of examples; lower is better, except for accuracy."""

    accuracy: float
    nll: float
    brier: float
    ece_equal_mass: float
    ece_equal_width: float
    num_examples: int
