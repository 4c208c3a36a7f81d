"""Folds around another, which see what it is given before it does."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Self

from torch import Tensor

from dswag.federation.contract import ClientError, Coordinates, FoldT, deliver, spread


class Around(ABC, Generic[FoldT]):
    """A fold that hands on everything to the one within, in place; what is around it overrides what it changes."""

    def __init__(self, fold: FoldT) -> None:
        self.fold = fold

    def add(self, result: Any) -> None:
        """Hands a result on."""
        self.fold.add(result)

    def miss(self, error: ClientError) -> None:
        """Hands on that a client failed."""
        deliver(self.fold, error)

    def merge(self, other: Self) -> None:
        """Merges the folds within."""
        self.fold.merge(other.fold)

    def result(self) -> Any:
        """What the fold within came to."""
        return self.fold.result()

    @abstractmethod
    def empty(self) -> Self:
        """The same around an empty fold."""

    def state(self) -> dict[str, Tensor]:
        """What the fold within took in."""
        return self.fold.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads the fold within."""
        self.fold.load(state)

    def spread(self, coordinates: Coordinates) -> None:
        """Tells the fold within."""
        spread(self.fold, coordinates)
