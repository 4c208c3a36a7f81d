"""Split conformal prediction: scores of examples, counted in bins, and the threshold that covers a share of them.

The score of an example says how badly a prediction fits its target. If n held-out scores and that of a new example are
exchangeable, the new one is at most the k-th smallest of the n, k = ⌈(n + 1)(1 - α)⌉, with probability 1 - α or more
(Vovk, Gammerman & Shafer 2005). Counts in bins suffice for that, to the width of a bin, and counts of clients add up.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dswag.core.choices import check_choice

ClassScore = Literal["thr", "aps", "raps"]
ResidualScore = Literal["absolute", "normalized"]
ConformalScore = Literal["thr", "aps", "raps", "absolute", "normalized"]

SMALLEST, LARGEST = 2.0**-40, 2.0**40
"""Residuals are told apart between these, about 1e-12 and 1e12; others count as the nearer of them."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which score, and how finely it is counted.

    - "thr": 1 - p_y, which gives the smallest sets on average (Sadinle, Lei & Wasserman 2019);
    - "aps": the sum of all probabilities that are at least p_y, its own included, which adapts the sets to how hard an
      example is (Romano, Sesia & Candès 2020, without randomization: sets cover a little more);
    - "raps": the same plus `penalty` for every rank of y beyond `free_ranks`, which cuts long tails (Angelopoulos et
      al. 2021);
    - "absolute": |y - m|, intervals of one width; "normalized": |y - m| / σ, in units of the predicted deviation.

    Raises:
        ValueError: an unknown score, or numbers out of range.
    """

    score: ConformalScore = "thr"
    resolution: float = 2.0**-12
    """Width of a bin: of scores of classes in probability, of residuals relative to their size."""
    penalty: float = 0.1
    free_ranks: int = 2

    def __post_init__(self) -> None:
        check_choice("score", self.score, get_args(ConformalScore))
        if not 2.0**-16 <= self.resolution <= 0.5:
            raise ValueError(f"resolution must lie in 2^-16 to 0.5, got {self.resolution}")
        if not (0 <= self.penalty <= 1 and self.free_ranks >= 0):
            raise ValueError(f"penalty must lie in 0 to 1 and free_ranks be at least 0, got {self}")

    @property
    def of_classes(self) -> bool:
        """Whether scores are those of classes."""
        return self.score in get_args(ClassScore)

    def classes(self, probabilities: Float[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
        """The score that each class would have if it were the target."""
        p = probabilities.double()
        if self.score == "thr":
            return 1 - p
        ordered, order = p.sort(dim=1, descending=True, stable=True)
        scores = (ordered.cumsum(1) / ordered.sum(1, keepdim=True)).clamp_max(1)
        scores[:, -1] = 1  # whatever rounding makes of the sum: many examples may have just this score
        if self.score == "raps":
            ranks = torch.arange(1, p.shape[1] + 1, device=p.device, dtype=torch.float64)
            scores = scores + self.penalty * (ranks - self.free_ranks).clamp_min(0)
        return torch.empty_like(scores).scatter_(1, order, scores)

    def residuals(self, mean: Tensor, variance: Tensor, targets: Tensor) -> Float64[Tensor, "n ..."]:
        """The scores of targets of a regression."""
        distance = (targets.double() - mean.double()).abs()
        return distance / variance.double().sqrt() if self.score == "normalized" else distance

    def counts(self, scores: Float64[Tensor, "n"]) -> Int64[Tensor, "b"]:
        """How many scores lie in each bin up to the last that is filled."""
        flat = scores.reshape(-1).cpu()
        if self.of_classes:
            return (flat / self.resolution).floor().long().clamp_min(0).bincount()
        steps = (flat.clamp(SMALLEST, LARGEST) / SMALLEST).log() / math.log1p(self.resolution)
        return steps.floor().long().bincount()

    @property
    def most_bins(self) -> int:
        """No answer has more; scores of classes are at most 1 + `penalty` times a million ranks."""
        if self.of_classes:
            return math.ceil((1 + self.penalty * 2**20 * (self.score == "raps")) / self.resolution) + 1
        return math.ceil(math.log(LARGEST / SMALLEST) / math.log1p(self.resolution)) + 1

    def upper(self, bin: int) -> float:
        """The upper end of a bin: its scores are at most this."""
        if self.of_classes:
            return (bin + 1) * self.resolution
        return SMALLEST * math.exp((bin + 1) * math.log1p(self.resolution))


def threshold(scoring: Scoring, counts: Int64[Tensor, "b"], alpha: float) -> float:
    """The score that a new example keeps to with probability at least 1 - alpha; infinite with too few examples.

    It is the upper end of the bin with the ⌈(n + 1)(1 - α)⌉-th smallest score, so at most a bin above that score.

    Raises:
        ValueError: an alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    n = int(counts.sum())
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    if rank > n:
        return math.inf
    return scoring.upper(int((counts.cumsum(0) < rank).sum()))


def covered(sets: Bool[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Whether each target is in its set."""
    return sets.gather(1, targets[:, None])[:, 0]
