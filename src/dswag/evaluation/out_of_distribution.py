"""How well uncertainty tells out-of-distribution inputs (outside) from inputs like the training data (inside)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.arrays import as_tensor


class Uncertain(Protocol):
    """Predictions with their uncertainty, such as `dswag.Predictive`."""

    @property
    def probabilities(self) -> Float[Tensor, "n c"]:
        """Of each class."""

    @property
    def entropy(self) -> Float[Tensor, "n"]:
        """Of the probabilities."""

    @property
    def mutual_information(self) -> Float[Tensor, "n"]:
        """How much the draws disagree."""


@dataclass(frozen=True)
class Detection:
    """How well one score separates two sets of inputs."""

    auroc: float
    """Area under the ROC curve: 1 if every input outside scores higher than all inside, 0.5 for a useless score."""
    fpr95: float
    """Share of the inputs outside that pass a threshold which 95 % of those inside pass; lower is better."""


def detect(inside: Uncertain, outside: Uncertain) -> dict[str, Detection]:
    """How well each score of uncertainty tells inputs outside the distribution from those inside.

    The scores are "entropy" of the mean probabilities, "confidence" (1 minus the largest probability; Hendrycks &
    Gimpel 2017) and "mutual information", which says nothing if a single set of weights predicts.
    """
    return {
        name: Detection(auroc(score(inside), score(outside)), fpr_at_tpr(score(inside), score(outside)))
        for name, score in SCORES.items()
    }


SCORES: Mapping[str, Callable[[Uncertain], Tensor]] = {
    "entropy": lambda predictions: predictions.entropy,
    "confidence": lambda predictions: 1 - predictions.probabilities.amax(1),
    "mutual information": lambda predictions: predictions.mutual_information,
}
"""Scores of uncertainty by name: the higher, the more an input seems to be from outside."""


def auroc(inside: Float[Tensor, "n"], outside: Float[Tensor, "m"]) -> float:
    """Area under the ROC curve: P(outside > inside) + ½ P(outside = inside) of one score drawn from each.

    By ranks (Mann & Whitney 1947), so exactly, with all ties.

    Raises:
        ValueError: scores that are no vectors, empty or NaN.
    """
    inside, outside = _scores("inside", inside), _scores("outside", outside)
    values, place = torch.unique(torch.cat([inside.double(), outside.double()]), return_inverse=True)
    num_inside = place[: len(inside)].bincount(minlength=len(values)).double()
    num_outside = place[len(inside) :].bincount(minlength=len(values)).double()
    below = num_inside.cumsum(0) - num_inside
    return float((num_outside * (below + num_inside / 2)).sum()) / (len(inside) * len(outside))


def fpr_at_tpr(inside: Float[Tensor, "n"], outside: Float[Tensor, "m"], tpr: float = 0.95) -> float:
    """Share of the scores outside at or below the lowest threshold with a share `tpr` of those inside at or below it.

    Inside counts as positive, as in Liang, Li & Srikant 2018.

    Raises:
        ValueError: scores that are no vectors, empty or NaN, or a `tpr` outside (0, 1].
    """
    inside, outside = _scores("inside", inside), _scores("outside", outside)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1], got {tpr}")
    shares = torch.arange(1, len(inside) + 1, dtype=torch.float64) / len(inside)
    threshold = inside.sort().values[int((shares < tpr).sum())]
    return int((outside <= threshold).sum()) / len(outside)


def _scores(name: str, values: Any) -> Tensor:
    scores = as_tensor(values)
    if scores.dim() != 1 or not len(scores):
        raise ValueError(f"scores {name} must be a vector of at least one, got shape {list(scores.shape)}")
    if scores.isnan().any():
        raise ValueError(f"scores {name} must be free of NaN, got one at {int(scores.isnan().nonzero()[0])}")
    return scores
