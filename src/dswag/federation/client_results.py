"""The clients' answers themselves, for what cannot be computed from running sums."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.federation.contract import APART, TrainResult

SNAPSHOTS = "snapshots" + APART
"""Name in the state of what may be a range of the coordinates."""


class AllCoordinates:
    """All coordinates of θ, where a single process holds them: as `dswag.federation.contract.Coordinates`."""

    def total(self, values: Tensor) -> Tensor:
        """The tensor as it is."""
        return values

    def part(self, whole: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """All of it."""
        return whole

    def whole(self, part: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """The part, which is all."""
        return part


class Answers:
    """Copies of training results, in task order whatever the order in which they came; changed in place.

    Memory for them grows with the number of clients. Several processes may hold a range of the coordinates each.
    """

    def __init__(self, like: Float[Tensor, "d"]) -> None:
        self.like = like
        self._answers: list[TrainResult] = []

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, result: TrainResult) -> None:
        """Keeps a copy of an answer."""
        self._answers.append(replace(result, thetas=result.thetas.clone()))

    def merge(self, other: Self) -> None:
        """Keeps another's too."""
        self._answers += other._answers

    def ordered(self) -> list[TrainResult]:
        """All answers, in task order."""
        return sorted(self._answers, key=lambda answer: answer.index)

    def state(self) -> dict[str, Tensor]:
        """The snapshots of all answers, and of each answer its four numbers and its loss."""
        answers = self.ordered()
        numbers = [(a.index, a.client, a.num_examples, len(a.thetas)) for a in answers]
        none = self.like.new_empty(0, len(self.like))
        return {
            SNAPSHOTS: torch.cat([answer.thetas for answer in answers]) if answers else none,
            "numbers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 4),
            "losses": torch.tensor([answer.loss for answer in answers], dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the answers whose `state` this is."""
        numbers = state["numbers"].tolist()
        thetas = torch.split(state[SNAPSHOTS].clone(), [count for *_, count in numbers])
        self._answers = [
            TrainResult(index=index, client=client, thetas=rows, num_examples=examples, loss=loss)
            for (index, client, examples, _), rows, loss in zip(numbers, thetas, state["losses"].tolist(), strict=True)
        ]
