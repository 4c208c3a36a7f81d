"""Whether confidence equals accuracy: reliability bins (Section 6) and the expected calibration error."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from dswag.core.links import IGNORED
from dswag.evaluation.alignment import aligned

Binning = Literal["equal-mass", "equal-width"]

BINS = 20
"""As in Section 6."""


def reliability(
    probabilities: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    *,
    bins: int = 20,
    binning: Binning = "equal-mass",
    ignore_index: int | None = IGNORED,
) -> "Reliability":
    """Mean confidence and accuracy in bins of confidence; a bin without examples is left out.

    The confidence of an example is its largest probability, and it counts as right when the first class that has this
    probability is the target.

    - equal-mass: examples sorted by confidence are cut into `bins` runs whose sizes differ by at most one. Examples of
      equal confidence all take the accuracy that they have together, so that a cut among them leaves no trace of the
      order in which they came.
    - equal-width: bin i is [i / bins, (i + 1) / bins), its edges rounded to the dtype of the probabilities; the last
      bin also takes confidence 1.

    Means are taken in float64 over sorted examples: any order of the examples gives the same bits.

    Takes predictions of every form that `alignment.aligned` does.

    Raises:
        ValueError: fewer than one bin, an unknown binning, or predictions that `aligned` refuses.
    """
    probabilities, targets = aligned(probabilities, targets, ignore_index=ignore_index)
    confidence, predicted = probabilities.max(dim=1)
    return binned(confidence, predicted == targets, bins, binning)


def binned(claimed: Float[Tensor, "n"], happened: Bool[Tensor, "n"], bins: int, binning: Binning) -> "Reliability":
    """The bins of `reliability` for any probabilities of events, and which of the events happened."""
    claimed, order = claimed.cpu().sort()
    happened = happened.cpu()[order].double()
    index = bins_of(claimed, bins, binning)
    if binning == "equal-mass":
        happened = _shared_among_ties(claimed, happened)
    count = index.bincount(minlength=bins)
    filled = count > 0
    claimed_sum = index.bincount(claimed.double(), minlength=bins)
    happened_sum = index.bincount(happened, minlength=bins)
    return Reliability(
        binning=binning,
        confidence=tuple((claimed_sum / count)[filled].tolist()),
        accuracy=tuple((happened_sum / count)[filled].tolist()),
        count=tuple(count[filled].tolist()),
    )


def bins_of(claimed: Float[Tensor, "n"], bins: int, binning: Binning) -> Int64[Tensor, "n"]:
    """The bin of each of some sorted probabilities."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if binning == "equal-mass":
        return torch.arange(len(claimed)) * bins // len(claimed)
    if binning == "equal-width":
        inner_edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(claimed.dtype)
        return torch.bucketize(claimed.double(), inner_edges.double(), right=True)
    raise ValueError(f'binning must be "equal-mass" or "equal-width", got {binning!r}')


def expected_calibration_error(
    probabilities: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    *,
    bins: int = 20,
    binning: Binning = "equal-mass",
    ignore_index: int | None = IGNORED,
) -> float:
    """Mean of |confidence - accuracy| over the bins of `reliability`, each with the share of its examples; in [0, 1].

    Source: Naeini, Cooper, Hauskrecht 2015 (equal width); Nguyen, O'Connor 2015 (equal mass).
    """
    return reliability(probabilities, targets, bins=bins, binning=binning, ignore_index=ignore_index).error


@dataclass(frozen=True)
class Reliability:
    """Bins in order of confidence, none of them empty; tuples, so that it goes into JSON as it is."""

    binning: Binning
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def gap(self) -> tuple[float, ...]:
        """Confidence - accuracy of every bin: positive where the model is overconfident."""
        return tuple(c - a for c, a in zip(self.confidence, self.accuracy, strict=True))

    @property
    def error(self) -> float:
        """Mean of |confidence - accuracy|, each bin with the share of its examples."""
        return sum(n * abs(gap) for n, gap in zip(self.count, self.gap, strict=True)) / sum(self.count)


def _shared_among_ties(confidence: Float[Tensor, "n"], correct: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """For each example of a sorted sequence, the mean of `correct` over the examples of the same confidence."""
    _, group, size = torch.unique_consecutive(confidence, return_inverse=True, return_counts=True)
    shared: Tensor = group.bincount(correct) / size
    return shared[group]
