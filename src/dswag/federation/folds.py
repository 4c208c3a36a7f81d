"""Folds that change nothing: every snapshot itself, sums of metrics, two folds in one pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class ClientEvaluation:
    """What one client measured on its own examples."""

    client: int
    loss: float | None
    """Mean over the client's examples; None where no label counts."""
    accuracy: float | None
    """None where no label counts, or the task is no classification."""
    calibration_error: float | None
    """Expected calibration error in 20 bins of equal mass; as `accuracy`."""
    num_examples: int
    """Of a classification, the labels that count."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over all examples; accuracy is None where the task is no classification."""

    loss: float
    accuracy: float | None
    num_examples: int
    """Of a classification, the labels that count."""
    clients: tuple[ClientEvaluation, ...] = field(default=(), repr=False)
    """What each client measured, in the order of their numbers."""


class Tally:
    """The clients' sums of metrics, each kept; a few numbers for each client."""

    def __init__(self) -> None:
        self._sums: list[EvaluateResult] = []

    def add(self, result: EvaluateResult) -> None:
        """Takes in one client's sums."""
        self._sums.append(result)

    def merge(self, other: Self) -> None:
        """Takes in another fold's sums."""
        self._sums += other._sums

    def result(self) -> Evaluation:
        """The means so far."""
        if not self._sums:
            raise ValueError("there is nothing to average over: add a result first")
        sums = sorted(self._sums, key=lambda each: (each.client, each.index))
        weight = math.fsum(each.loss_weight for each in sums)
        if not weight:
            raise ValueError("there is nothing to average over: no client has a label that counts")
        classes = all(each.num_correct is not None for each in sums)
        num_examples = sum(each.num_examples for each in sums)
        return Evaluation(
            loss=math.fsum(each.loss_sum for each in sums) / weight,
            accuracy=sum(each.num_correct or 0 for each in sums) / num_examples if classes else None,
            num_examples=num_examples,
            clients=tuple(map(_of_client, sums)),
        )

    def empty(self) -> Self:
        """Sums of nothing."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """The sums of each client; -1 stands for what is no classification."""
        return {
            "counts": torch.tensor(
                [
                    (s.index, s.client, s.num_examples, -1 if s.num_correct is None else s.num_correct)
                    for s in self._sums
                ],
                dtype=torch.int64,
            ).reshape(-1, 4),
            "sums": torch.tensor(
                [
                    (s.loss_sum, s.loss_weight, -1.0 if s.calibration_error is None else s.calibration_error)
                    for s in self._sums
                ],
                dtype=torch.float64,
            ).reshape(-1, 3),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the sums of another."""
        self._sums = [
            EvaluateResult(
                index=index,
                client=client,
                num_examples=examples,
                loss_sum=loss_sum,
                loss_weight=weight,
                num_correct=None if correct < 0 else correct,
                calibration_error=None if correct < 0 else error,
            )
            for (index, client, examples, correct), (loss_sum, weight, error) in zip(
                state["counts"].tolist(), state["sums"].tolist(), strict=True
            )
        ]


def _of_client(sums: EvaluateResult) -> ClientEvaluation:
    classes = sums.num_correct is not None and sums.num_examples > 0
    return ClientEvaluation(
        client=sums.client,
        loss=sums.loss_sum / sums.loss_weight if sums.loss_weight else None,
        accuracy=(sums.num_correct or 0) / sums.num_examples if classes else None,
        calibration_error=sums.calibration_error if classes else None,
        num_examples=sums.num_examples,
    )


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
