"""Accuracy and proper scores of predicted probabilities (Section 6).

All take tensors, NumPy arrays or lists, of classes or of yes-or-no labels, in the shapes that `alignment.aligned`
names; tokens, pixels and labels count as examples. Targets of -100, or of another `ignore_index`, do not count. Sums
are taken in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from dswag.core.links import IGNORED
from dswag.evaluation.alignment import aligned
from dswag.evaluation.reliability import expected_calibration_error


def score(
    probabilities: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    bins: int = 20,
    *,
    ignore_index: int | None = IGNORED,
) -> "Scores":
    """All scores of one set of predictions.

    Raises:
        ValueError: predictions that `alignment.aligned` refuses, as from every function of this module.
    """
    probabilities, targets = aligned(probabilities, targets, ignore_index=ignore_index)
    return Scores(
        accuracy=accuracy(probabilities, targets),
        nll=nll(probabilities, targets),
        brier=brier(probabilities, targets),
        ece_equal_mass=expected_calibration_error(probabilities, targets, bins=bins, binning="equal-mass"),
        ece_equal_width=expected_calibration_error(probabilities, targets, bins=bins, binning="equal-width"),
        num_examples=len(targets),
    )


def accuracy(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], *, ignore_index: int | None = IGNORED
) -> float:
    """Share of examples whose most probable class is the target, in [0, 1]; of tied classes the first is predicted."""
    probabilities, targets = aligned(probabilities, targets, ignore_index=ignore_index)
    return int((probabilities.argmax(dim=1) == targets).sum()) / len(targets)


def nll(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], *, ignore_index: int | None = IGNORED) -> float:
    """Mean negative log-likelihood of the targets, in nats, at least 0."""
    return float(nll_of_each(probabilities, targets, ignore_index=ignore_index).mean())


def nll_of_each(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], *, ignore_index: int | None = IGNORED
) -> Float64[Tensor, "m"]:
    """Negative log-likelihood of every target that counts, in nats.

    A probability counts as no smaller than the smallest positive normal number of its dtype. One example thus has at
    most 87.3 in float32 and bfloat16, 708.4 in float64 and 9.7 in float16, and a probability of 0 gives a finite one.
    """
    return nll_of_rows(*aligned(probabilities, targets, ignore_index=ignore_index)).cpu()


def nll_of_rows(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """The same for rows and classes that are known to fit, where they are; there may be none."""
    likelihood = probabilities.gather(1, targets[:, None]).double()[:, 0]
    smallest = torch.finfo(probabilities.dtype).smallest_normal
    return -likelihood.clamp(smallest, 1.0).log()


def brier(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], *, ignore_index: int | None = IGNORED
) -> float:
    """Brier score over all classes, mean of Σ_c (p_c - [c = target])², in [0, 2].

    Source: Brier 1950. The two-class form over one probability, in [0, 1], is half of it.
    """
    probabilities, targets = aligned(probabilities, targets, ignore_index=ignore_index)
    errors = probabilities.to(torch.float64, copy=True)
    errors.scatter_add_(1, targets[:, None], errors.new_full((len(targets), 1), -1.0))
    return float(errors.square_().sum(dim=1).mean())


@dataclass(frozen=True)
class Scores:
    """Scores of one method on one set of examples; lower is better, except for accuracy."""

    accuracy: float
    nll: float
    brier: float
    ece_equal_mass: float
    ece_equal_width: float
    num_examples: int
