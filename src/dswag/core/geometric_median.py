"""The geometric median of points from their distances and inner products alone (Weber 1909; Weiszfeld 1937)."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

STAGES = 10.0
"""The smoothing goes from the radius of the majority down to what was asked for, in steps of this factor."""

VANISHING = 1e-100
"""A radius that is none: its square, which distances are measured in, would have no digits."""


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

    Beside them the number of a point in the midst of the majority. Where the median is not a single point, as between
    the middle two of an even number on a line, it is the one that smoothed distances prefer: for points that lie
    symmetrically, the middle.

    Args:
        distances: of every pair of points.
        inner: the inner products of the points' differences to the point in the midst of the majority, whose number it
            is given, so that points far away cost no digits.
        weights: of the points, with a sum of 1.
        smoothing: ε, by which distances are √(distance² + ε²): a fraction of the smallest radius around a point that
            holds the majority. It moves the median by at most about as much, and only where that is at a point.
        tolerance: on the norm of the gradient of the mean distance; 1 is the most that it can be.
        max_iterations: of Newton's method.

    Raises:
        RuntimeError: no convergence in so many iterations.
    """
    radii = torch.stack([_majority_radius(row, weights) for row in distances])
    center = int(radii.argmin())
    radius = float(radii[center])
    if radius < VANISHING:  # more than half of the weight is on this very point
        coefficients = torch.zeros_like(weights)
        coefficients[center] = 1
        return coefficients, center
    near = weights * (distances[center] <= radius)
    points = _embedded(inner(center) / radius**2)
    place = _minimum(points, weights, (near / near.sum()) @ points, smoothing, tolerance, max_iterations)
    pulls = weights / _distances(points, place, smoothing)  # which hold the place in balance (Weiszfeld)
    return pulls / pulls.sum(), center


def _embedded(inner: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Points that have these inner products; those far away cost the others no digits, as all are scaled to 1 first."""
    norms = inner.diagonal().clamp_min(0).sqrt()
    scaled = torch.where(norms > 0, norms, 1)
    values, vectors = torch.linalg.eigh(inner / scaled[:, None] / scaled)
    embedded: Tensor = norms[:, None] * vectors * values.clamp_min(0).sqrt()
    return embedded


def _minimum(
    points: Float64[Tensor, "n n"],
    weights: Float64[Tensor, "n"],
    place: Float64[Tensor, "n"],
    smoothing: float,
    tolerance: float,
    max_iterations: int,
) -> Float64[Tensor, "n"]:
    """Where the mean smoothed distance is least, by Newton's method, with less and less smoothing.

    Steps are halved until the mean distance falls. It ends where the gradient is within the tolerance and the next
    step would gain nothing to speak of, or where rounding leaves nothing to gain.
    """
    iterations, epsilon = 0, 1.0
    while True:
        epsilon = max(epsilon / STAGES, smoothing)
        moved = True
        while moved:
            if iterations == max_iterations:
                raise RuntimeError(
                    f"the median did not converge in {max_iterations} iterations: the gradient is "
                    f"{float(_slope(points, weights, place, epsilon)[0].norm()):.1e}, asked for was {tolerance:.1e}; "
                    "allow more iterations, or a larger tolerance or smoothing"
                )
            iterations += 1
            place, moved = _newton_step(points, weights, place, epsilon, tolerance)
        if epsilon == smoothing:
            return place


def _newton_step(
    points: Float64[Tensor, "n n"], weights: Float64[Tensor, "n"], place: Tensor, epsilon: float, tolerance: float
) -> tuple[Float64[Tensor, "n"], bool]:
    """A step down, and whether there was one worth its while."""
    gradient, hessian = _slope(points, weights, place, epsilon)
    step = torch.linalg.solve(hessian, gradient)
    promised = float(gradient @ step)  # twice the fall that the quadratic model expects
    small = float(gradient.norm()) <= tolerance and promised <= (tolerance * epsilon) ** 2
    share = 1.0
    while share > 1e-10:
        there = place - share * step
        if _rise(points, weights, place, there, epsilon) < -0.1 * share * promised:
            return there, not small
        share /= 2
    return place, False


def _rise(points: Tensor, weights: Tensor, place: Tensor, there: Tensor, epsilon: float) -> float:
    """By how much the mean smoothed distance is larger there; not as a difference, in which far points drown it."""
    squares = (there + place - 2 * points) @ (there - place)
    return float(weights @ (squares / (_distances(points, there, epsilon) + _distances(points, place, epsilon))))


def _slope(
    points: Float64[Tensor, "n n"], weights: Float64[Tensor, "n"], place: Float64[Tensor, "n"], epsilon: float
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n n"]]:
    """Gradient and Hessian of the mean smoothed distance: Σ w u and Σ w (I - u uᵀ) / s, u being (x - p) / s."""
    s = _distances(points, place, epsilon)
    u, pulls = (place - points) / s[:, None], weights / s
    return weights @ u, torch.eye(len(place), dtype=torch.float64, device=place.device) * pulls.sum() - (
        u.T * pulls
    ) @ u


def _distances(points: Float64[Tensor, "n n"], place: Float64[Tensor, "n"], epsilon: float) -> Float64[Tensor, "n"]:
    return ((place - points).square().sum(1) + epsilon**2).sqrt()


def _majority_radius(distances: Float64[Tensor, "n"], weights: Float64[Tensor, "n"]) -> Float64[Tensor, ""]:
    """The smallest of the distances within which lies more than half of the weight."""
    ordered, order = distances.sort()
    held = weights[order].cumsum(0)
    return ordered[int((held <= held[-1] / 2 * (1 + 1e-12)).sum())]  # half is no majority, however it was rounded
