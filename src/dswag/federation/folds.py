"""Folds that change nothing: every snapshot itself, sums of metrics, two folds in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.federation.contract import Coordinates, EvaluateResult, Fold, TrainResult, prefixed, spread, within


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


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over all examples; accuracy is None where the task is no classification."""

    loss: float
    accuracy: float | None
    num_examples: int


class Tally:
    """Sums of the clients' metrics."""

    def __init__(self) -> None:
        self._num_examples = 0
        self._loss_sum = 0.0
        self._num_correct: int | None = 0

    def add(self, result: EvaluateResult) -> None:
        """Takes in one client's sums."""
        self._take(result.num_examples, result.loss_sum, result.num_correct)

    def merge(self, other: Self) -> None:
        """Takes in another fold's sums."""
        self._take(other._num_examples, other._loss_sum, other._num_correct)

    def result(self) -> Evaluation:
        """The means so far."""
        if not self._num_examples:
            raise ValueError("there is nothing to average over: add a result first")
        accuracy = None if self._num_correct is None else self._num_correct / self._num_examples
        return Evaluation(self._loss_sum / self._num_examples, accuracy, self._num_examples)

    def empty(self) -> Self:
        """Sums of nothing."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """The sums; no number of correct predictions where there is none."""
        counts = [self._num_examples] if self._num_correct is None else [self._num_examples, self._num_correct]
        return {"counts": torch.tensor(counts), "loss_sum": torch.tensor(self._loss_sum, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the sums of another."""
        self._num_examples, *correct = state["counts"].tolist()
        self._num_correct = correct[0] if correct else None
        self._loss_sum = state["loss_sum"].item()

    def _take(self, num_examples: int, loss_sum: float, num_correct: int | None) -> None:
        self._num_examples += num_examples
        self._loss_sum += loss_sum
        if self._num_correct is None or num_correct is None:
            self._num_correct = None
        else:
            self._num_correct += num_correct


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
