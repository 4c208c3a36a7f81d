"""Folds that change nothing: every snapshot itself, sums of metrics, two folds in one pass."""

from collections.abc import Mapping
from typing import Generic, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.federation.client_results import TrainResult
from dswag.federation.contract import Fold
from dswag.federation.coordinates import Coordinates, spread


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fold's state as a part of the state of the fold around it."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def within(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the state that has this prefix, with the prefix removed."""
    return {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}


class Snapshots:
    """Every snapshot itself, in task order however they come: its memory grows with the number of clients."""

    def __init__(self) -> None:
        self._thetas: list[tuple[int, Float[Tensor, "s d"]]] = []

    def add(self, result: TrainResult) -> None:
        """Keeps one client's snapshots."""
        self._thetas.append((result.index, result.thetas))

    def merge(self, other: Self) -> None:
        """Keeps another fold's snapshots too."""
        self._thetas.extend(other._thetas)

    def result(self) -> Float[Tensor, "s d"]:
        """All snapshots, a row each."""
        if not self._thetas:
            raise ValueError("no snapshots were taken in: add a result first")
        return torch.cat([thetas for _, thetas in sorted(self._thetas, key=lambda kept: kept[0])])

    def empty(self) -> Self:
        """No snapshots."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """All snapshots, with the index and the number of each client's."""
        if not self._thetas:
            return {}
        clients = torch.tensor([(index, len(thetas)) for index, thetas in self._thetas])
        return {"thetas [d]": torch.cat([thetas for _, thetas in self._thetas]), "clients": clients}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the snapshots of another."""
        self._thetas = []
        if state:
            indices, numbers = state["clients"].T.tolist()
            self._thetas = list(zip(indices, torch.split(state["thetas [d]"].clone(), numbers), strict=True))


FirstT = TypeVar("FirstT")
SecondT = TypeVar("SecondT")
ResultT = TypeVar("ResultT")


class Both(Generic[ResultT, FirstT, SecondT]):
    """Two folds fed by one pass over the clients."""

    def __init__(self, first: Fold[ResultT, FirstT], second: Fold[ResultT, SecondT]) -> None:
        self.first = first
        self.second = second

    def add(self, result: ResultT) -> None:
        """Hands the result to both."""
        self.first.add(result)
        self.second.add(result)

    def merge(self, other: Self) -> None:
        """Merges each with its like."""
        self.first.merge(other.first)
        self.second.merge(other.second)

    def result(self) -> tuple[FirstT, SecondT]:
        """Both outcomes."""
        return self.first.result(), self.second.result()

    def empty(self) -> Self:
        """Both of them empty."""
        return type(self)(self.first.empty(), self.second.empty())

    def state(self) -> dict[str, Tensor]:
        """What both took in."""
        return {**prefixed("first", self.first.state()), **prefixed("second", self.second.state())}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads both."""
        self.first.load(within("first", state))
        self.second.load(within("second", state))

    def spread(self, coordinates: Coordinates) -> None:
        """Tells both."""
        spread(self.first, coordinates)
        spread(self.second, coordinates)
