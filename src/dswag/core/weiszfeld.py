"""The geometric median of points from their distances and inner products alone (Weiszfeld 1937)."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor


def median_coefficients(
    distances: Float64[Tensor, "n n"],
    inner: Callable[[int], Float64[Tensor, "n n"]],
    weights: Float64[Tensor, "n"],
    *,
    smoothing: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[Float64[Tensor, "n"], int]:
    """The coefficients, at least 0 and of sum 1, by which the points' weighted mean is their geometric median.

    Beside them the number of a point in the midst of the majority.

    Args:
        distances: of every pair of points.
        inner: the inner products of the points' differences to the point in the midst of the majority, whose number it
            is given, so that points far away cost no digits.
        weights: of the points, with a sum of 1.
        smoothing: ε, by which distances are √(distance² + ε²): a fraction of the smallest radius around a point that
            holds the majority. It moves the median by at most about as much, and only where that is at a point.
        tolerance: on the norm of the gradient of the mean distance; 1 is the most that it can be.
        max_iterations: of Weiszfeld's algorithm.

    Raises:
        RuntimeError: no convergence in so many iterations.
    """
    radii = torch.stack([_majority_radius(row, weights) for row in distances])
    center = int(radii.argmin())
    radius = float(radii[center])
    if radius == 0:  # more than half of the weight is on this very point
        coefficients = torch.zeros_like(weights)
        coefficients[center] = 1
        return coefficients, center
    start = weights * (distances[center] <= radius)
    start /= start.sum()
    return _iterated(inner(center) / radius**2, weights, start, smoothing, tolerance, max_iterations), center


def _iterated(
    inner: Float64[Tensor, "n n"],
    weights: Float64[Tensor, "n"],
    coefficients: Float64[Tensor, "n"],
    smoothing: float,
    tolerance: float,
    max_iterations: int,
) -> Float64[Tensor, "n"]:
    norms = inner.diagonal()
    gradient = float("inf")
    for _ in range(max_iterations):
        products = inner @ coefficients
        squared = (coefficients @ products - 2 * products + norms).clamp_min(0)
        pulls = weights / (squared + smoothing**2).sqrt()
        following = pulls / pulls.sum()
        step = following - coefficients
        gradient = float(pulls.sum() * (step @ inner @ step).clamp_min(0).sqrt())
        if gradient <= tolerance:
            return following
        coefficients = following
    raise RuntimeError(
        f"the median did not converge in {max_iterations} iterations: the gradient is {gradient:.1e}, asked for was "
        f"{tolerance:.1e}; allow more iterations, or a larger tolerance or smoothing"
    )


def _majority_radius(distances: Float64[Tensor, "n"], weights: Float64[Tensor, "n"]) -> Float64[Tensor, ""]:
    """The smallest of the distances within which lies more than half of the weight."""
    ordered, order = distances.sort()
    held = weights[order].cumsum(0)
    return ordered[int((held <= held[-1] / 2).sum())]
