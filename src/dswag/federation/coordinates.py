"""Folds cut by the coordinates of θ, of which each of several processes holds a range."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from dswag.federation.contract import Fold

PER_COORDINATE = " [d]"
"""Ends the names of tensors in a fold's state whose last axis is that of θ."""

APART = " of each client [d]"
"""Ends the names of tensors of which, once cut by coordinates, every process keeps only its own range."""


class Coordinates(Protocol):
    """θ's coordinates, divided into ranges that several processes hold; all processes call these methods together."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of a small tensor that each has computed from its own range."""

    def part(self, whole: Float[Tensor, "d"]) -> Float[Tensor, "d_part"]:
        """This process's range of the coordinates."""

    def whole(self, part: Float[Tensor, "d_part"]) -> Float[Tensor, "d"]:
        """All coordinates, put together from the ranges of all processes."""


@runtime_checkable
class SpreadFold(Protocol):
    """A fold that keeps something of each client, and can work with a range of the coordinates in each process."""

    def spread(self, coordinates: Coordinates) -> None:
        """From now on the tensors that are `APART` hold one range of the coordinates; other processes hold the rest.

        `result` is then called by all processes together.
        """


def spread(fold: Fold[Any, Any], coordinates: Coordinates) -> None:
    """Tells the fold, and those within it, that they hold a range of the coordinates."""
    if isinstance(fold, SpreadFold):
        fold.spread(coordinates)


class AllCoordinates:
    """All coordinates of θ, where a single process holds them."""

    def total(self, values: Tensor) -> Tensor:
        """The tensor as it is."""
        return values

    def part(self, whole: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """All of it."""
        return whole

    def whole(self, part: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """The part, which is all."""
        return part
