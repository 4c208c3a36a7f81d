"""The geometric median (Pillutla, Kakade & Harchaoui 2022, "Robust Aggregation for Federated Learning")."""

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.chunked import Rows, gram, squared_distances, weighted_sum
from dswag.core.geometric_median import median_coefficients
from dswag.federation.aggregation.robust import Total

SMOOTHING = 1e-4
"""Of the distances, in radii of the majority: moves the median by at most about as much."""

TOLERANCE = 1e-5
"""On the norm of the gradient of the mean distance, which is 1 far away."""


def geometric_median(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float[Tensor, "d"]:
    """The point with the least sum of distances to all rows, with smoothed distances.

    All rows weigh the same: a number of examples is what a client claims. It is found from the n x n inner
    products, so that θ is passed over twice: for these, and for the weighted mean at the end.
    """
    inner = total(gram(rows, anchor))

    def around(center: int) -> Tensor:
        to_center = inner[center]
        return inner - to_center - to_center[:, None] + to_center[center]

    coefficients, _ = median_coefficients(
        squared_distances(inner).sqrt(),
        around,
        torch.full((len(rows),), 1 / len(rows), dtype=torch.float64, device="cpu"),
        smoothing=SMOOTHING,
        tolerance=TOLERANCE,
        max_iterations=1_000,
    )
    return weighted_sum(coefficients, rows)
