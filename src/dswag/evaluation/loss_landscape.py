"""The loss on lines and planes through a posterior's mean, along the eigenvectors of its covariance (Figures 4, 6)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.evaluation.principal import Principal

OutcomeT = TypeVar("OutcomeT")
Loss = Callable[[Float[Tensor, "d"]], float]
"""Of the model with some weights; it refreshes BatchNorm statistics where the model has such layers."""
Grid = tuple[tuple[float, ...], ...]


def surroundings(
    mean: Float[Tensor, "d"],
    principal: Principal,
    at: Sequence[float],
    losses: Mapping[str, Loss],
    *,
    total_variance: float,
    planes: int,
) -> "Surroundings":
    """Every loss on a line along each eigenvector, and the first of them on planes of two.

    Args:
        mean: where all lines and planes meet.
        principal: the eigenvectors.
        at: distances from the mean, in standard deviations.
        losses: by the examples that they are of.
        total_variance: the trace of the covariance.
        planes: how many; of eigenvectors 1 and 2, then 3 and 4, and so on.
    """
    main = next(iter(losses.values()))

    def plane(first: int) -> Plane:
        measured = on_plane(mean, principal.steps[first], principal.steps[first + 1], at, main)
        return Plane((first + 1, first + 2), _grid(measured), _grid(density_on_plane(at)))

    return Surroundings(
        at=tuple(at),
        eigenvalues=tuple(principal.values.tolist()),
        total_variance=total_variance,
        lines={name: _grid([along(mean, step, at, loss) for step in principal.steps]) for name, loss in losses.items()},
        planes=tuple(plane(first) for first in range(0, 2 * planes, 2)),
    )


def along(
    mean: Float[Tensor, "d"],
    direction: Float[Tensor, "d"],
    distances: Sequence[float],
    measure: Callable[[Float[Tensor, "d"]], OutcomeT],
) -> list[OutcomeT]:
    """What is measured at mean + x · direction, for each distance x.

    If the model has BatchNorm layers, `measure` must collect their statistics for each θ.
    """
    return [measure(mean + (x * direction).to(mean.dtype)) for x in distances]


def on_plane(
    mean: Float[Tensor, "d"],
    first: Float[Tensor, "d"],
    second: Float[Tensor, "d"],
    distances: Sequence[float],
    measure: Callable[[Float[Tensor, "d"]], OutcomeT],
) -> list[list[OutcomeT]]:
    """What is measured at mean + x · first + y · second: a row for each y, a column for each x."""
    return [along(mean + (y * second).to(mean.dtype), first, distances, measure) for y in distances]


def density_on_plane(distances: Sequence[float]) -> list[list[float]]:
    """Log density minus that of the mean, -(x² + y²)/2, on the plane of two eigenvectors, in standard deviations."""
    return [[-(x * x + y * y) / 2 for x in distances] for y in distances]


def random_signs(direction: Float[Tensor, "d"], generator: torch.Generator) -> Float[Tensor, "d"]:
    """The direction with a random sign for each element; its length does not change."""
    coins = torch.randint(2, direction.shape, generator=generator).to(direction.device)
    return direction * (2 * coins - 1)


@dataclass(frozen=True)
class Plane:
    """The loss and the posterior's density on the plane of two eigenvectors: a row for each y, a column for each x."""

    axes: tuple[int, int]
    """Numbers of the eigenvectors along which x and y are, from 1."""
    loss: Grid
    log_density: Grid
    """Less that of the mean."""


@dataclass(frozen=True)
class Surroundings:
    """What was measured around a posterior's mean; tuples, so that it goes into JSON as it is.

    Raises:
        ValueError: distances that do not ascend, or losses that are not a number for each of them.
    """

    at: tuple[float, ...]
    """Distances from the mean, in standard deviations along the eigenvector, ascending."""
    eigenvalues: tuple[float, ...]
    """Of the covariance, the largest first."""
    total_variance: float
    """The trace, of which each eigenvalue is a share."""
    lines: Mapping[str, Grid]
    """By the examples that the loss is of, for each eigenvector the loss at each distance."""
    planes: tuple[Plane, ...]

    def __post_init__(self) -> None:
        directions, distances = len(self.eigenvalues), len(self.at)
        if not distances or any(not a < b for a, b in pairwise((-math.inf, *self.at, math.inf))):
            raise ValueError(f"distances from the mean must ascend, got {list(self.at)}")
        if not self.eigenvalues or any(not 0 < value < math.inf for value in (*self.eigenvalues, self.total_variance)):
            raise ValueError(f"variances must be above 0, got {list(self.eigenvalues)} of {self.total_variance}")
        if any(not 1 <= number <= directions for plane in self.planes for number in plane.axes):
            raise ValueError(f"planes must be of eigenvectors 1 to {directions}, got {[p.axes for p in self.planes]}")
        for grid, rows in (
            *((grid, directions) for grid in self.lines.values()),
            *((grid, distances) for plane in self.planes for grid in (plane.loss, plane.log_density)),
        ):
            if [len(row) for row in grid] != rows * [distances] or not all(map(math.isfinite, chain(*grid))):
                raise ValueError(f"losses must be {rows} rows of {distances} finite numbers, got {list(grid)}")


def _grid(rows: Sequence[Sequence[float]]) -> Grid:
    return tuple(map(tuple, rows))
