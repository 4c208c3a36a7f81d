"""Predicting only where the model is sure: accuracy of the most confident, and the area under the risk-coverage curve.

The confidence of an example is its largest probability. Among examples of equal confidence, errors count by their
share: as if ties were broken at random, on average.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dswag.evaluation.alignment import aligned


def risk_coverage(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """The error rate among the k most confident examples, for k = 1 to n; in [0, 1].

    Source: El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017.

    Raises:
        ValueError: predictions that `alignment.aligned` refuses, as from every function of this module.
    """
    probabilities, targets = aligned(probabilities, targets)
    confidence, predicted = probabilities.max(1)
    confidence, order = confidence.cpu().sort(descending=True)
    wrong = (predicted != targets).cpu()[order].double()
    _, group, size = torch.unique_consecutive(confidence, return_inverse=True, return_counts=True)
    shared = (group.bincount(wrong) / size)[group]
    risks: Tensor = shared.cumsum(0) / torch.arange(1, len(shared) + 1, dtype=torch.float64)
    return risks


def aurc(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> float:
    """Area under the risk-coverage curve, the mean of `risk_coverage` over k; in [0, 1], lower is better.

    Source: Geifman, Uziel & El-Yaniv 2019, Section 2.
    """
    return float(risk_coverage(probabilities, targets).mean())


def excess_aurc(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> float:
    """How far `aurc` is above that of a perfect order, which puts all errors last; at least 0.

    Source: Geifman, Uziel & El-Yaniv 2019, Section 2.
    """
    risks = risk_coverage(probabilities, targets)
    n, errors = len(risks), round(float(risks[-1]) * len(risks))
    least = torch.arange(1, errors + 1, dtype=torch.float64) / torch.arange(n - errors + 1, n + 1)
    return max(0.0, float(risks.mean() - least.sum() / n))


def selective_accuracy(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], coverage: float = 0.8) -> float:
    """Accuracy on the share `coverage` of the examples that have the highest confidence, rounded up to whole examples.

    Raises:
        ValueError: a coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must lie in (0, 1], got {coverage}")
    risks = risk_coverage(probabilities, targets)
    kept = int((torch.arange(1, len(risks), dtype=torch.float64) / len(risks) < coverage).sum())
    return 1 - float(risks[kept])
