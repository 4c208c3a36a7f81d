"""Folds that change nothing: every snapshot itself, sums of metrics, two folds in one pass."""

from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.tasks import EvaluateResult, Fold, TrainResult


class Snapshots:
    """Every snapshot itself, in task order: its memory grows with the number of clients."""

    def __init__(self) -> None:
        self._thetas: list[Float[Tensor, "s d"]] = []

    def add(self, result: TrainResult) -> None:
        """Keeps one client's snapshots."""
        self._thetas.append(result.thetas)

    def merge(self, other: Self) -> None:
        """Keeps another fold's snapshots, after this one's."""
        self._thetas.extend(other._thetas)

    def result(self) -> Float[Tensor, "s d"]:
        """All snapshots, a row each."""
        if not self._thetas:
            raise ValueError("no snapshots were taken in: add a result first")
        return torch.cat(self._thetas)


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
