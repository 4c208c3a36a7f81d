"""The geometric median of the clients' posteriors: right while fewer than half of them are wrong."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pdist

from dswag.core.geometric_median import median_coefficients
from dswag.posterior.combining.clients import (
    Weights,
    centered,
    checked,
    layout_of,
    means,
    normalized,
    over_parts,
    sum_over_parts,
    variances,
)
from dswag.posterior.gaussian import GaussianPosterior


def wasserstein_median(
    posteriors: Sequence[GaussianPosterior],
    weights: Weights | None = None,
    *,
    smoothing: float = 1e-4,
    tolerance: float = 1e-5,
    max_iterations: int = 1_000,
) -> GaussianPosterior:
    """The diagonal Gaussian with the smallest weighted sum of Wasserstein-2 distances to the clients'.

    A median of posteriors as in Minsker et al. 2014 (reference [17] of the paper), with another distance. Between
    diagonal Gaussians W₂² = |m₁ - m₂|² + |s₁ - s₂|², s being standard deviations, so they are points (m, s) of a
    Euclidean space and their geometric median is that of points. If all but a share q < ½ of the weight lies within
    r of some point, the median lies within r (1 - q) / √(1 - 2q) of it (there, Lemma 2.1), whatever the others are.
    It is found from the W x W inner products of the points, so θ is read three times in all. Where it is not unique, as
    for an even number of points on a line, it is the one in the middle.

    Columns are dropped: a weighted pool of them would let a far client's offset in again, by its square, and for other
    than diagonal covariances the distance is no Euclidean one. The spread is that of a typical client: it does not
    shrink with the number of clients.

    Args:
        posteriors: of the clients, over the same parameters.
        weights: of the clients, up to a factor; equal if None, since an adversary may claim any number of snapshots.
        smoothing: ε, by which distances are √(distance² + ε²): a fraction of the smallest radius around a client that
            holds the majority. It moves the median by at most about as much, and only where that is at a client.
        tolerance: on the norm of the gradient of the mean distance; 1 is the most that it can be.
        max_iterations: of Newton's method.

    Raises:
        ValueError: no posteriors, or some that `clients.checked` refuses; impossible weights;
            NaN or infinity, or distances that overflow; no smoothing or tolerance.
        RuntimeError: no convergence in so many iterations.
    """
    if not (smoothing > 0 and tolerance > 0 and max_iterations > 0):
        raise ValueError(
            "smoothing, tolerance and max_iterations must be positive, "
            f"got {smoothing}, {tolerance} and {max_iterations}"
        )
    clients = checked(posteriors)
    shares = normalized([1.0] * len(clients) if weights is None else weights, clients).cpu()
    coefficients, center = median_coefficients(
        _distances(clients),
        partial(_inner_products, clients),
        shares,
        smoothing=smoothing,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return _barycenter(clients, coefficients, center)


def _points(clients: Sequence[GaussianPosterior], part: slice) -> Float64[Tensor, "w q"]:
    """A part of the coordinates of the points (m, s) of all clients."""
    return torch.cat([means(clients, part), variances(clients, part).sqrt_()], dim=1)


def _inner_products(clients: Sequence[GaussianPosterior], center: int) -> Float64[Tensor, "w w"]:
    """Of the differences to one of the points."""

    def inner(part: slice) -> Tensor:
        points = _points(clients, part)
        points -= points[center].clone()
        return points @ points.T

    return sum_over_parts(inner, clients, 4 * len(clients)).cpu()


def _distances(clients: Sequence[GaussianPosterior]) -> Float64[Tensor, "w w"]:
    """The Wasserstein-2 distance of every pair, from differences: inner products would cancel for points far away."""
    count = len(clients)
    squared = sum_over_parts(lambda part: pdist(_points(clients, part)).square_(), clients, 4 * count)
    distances = torch.zeros(count, count, dtype=torch.float64)
    first, second = torch.triu_indices(count, count, 1)
    distances[first, second] = distances[second, first] = squared.sqrt().cpu()
    broken = ~torch.isfinite(distances)
    if broken.any():
        most = broken.sum(1)
        worst = (most == most.max()).nonzero().flatten().tolist()
        raise ValueError(
            f"the distances of posteriors {worst} are not finite: they hold NaN or infinity, or are too far away; "
            "leave them out"
        )
    return distances


def _barycenter(
    clients: Sequence[GaussianPosterior], coefficients: Float64[Tensor, "w"], center: int
) -> GaussianPosterior:
    """The Gaussian whose mean and standard deviations are weighted means of the clients'."""
    coefficients = coefficients.to(clients[0].mean.device)
    mean, variance = torch.empty_like(clients[0].mean), torch.empty_like(clients[0].mean)

    def fill(part: slice) -> None:
        mean[part] = centered(means(clients, part), coefficients, center)[0]
        variance[part] = (coefficients @ variances(clients, part).sqrt_()).square_()

    for _ in over_parts(fill, clients, 4 * len(clients)):
        pass
    return GaussianPosterior(
        mean=mean,
        variance=variance,
        deviations=mean.new_empty(0, len(mean)),
        count=sum(client.count for client in clients),
        layout=layout_of(clients),
        temperature=clients[0].temperature,
        link=clients[0].link,
    )
