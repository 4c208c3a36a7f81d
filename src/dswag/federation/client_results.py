"""What clients that trained send back, and a keeper of it for what cannot be computed from running sums."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.federation.contract import Result, Task
from dswag.federation.coordinates import APART

SNAPSHOTS = "snapshots" + APART
"""Name in the state of what may be a range of the coordinates."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainResult(Result):
    """What a client that trained sends back."""

    thetas: Float[Tensor, "s d"]
    """The snapshots, in the form that the task's `upload` names."""
    num_examples: int
    loss: float
    """Mean training loss of the last local epoch."""

    def to_wire(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Snapshots are named like the weights that came, so that Flower's mods know them for an update of these."""
        return {"num_examples": self.num_examples, "loss": self.loss}, {"theta": self.thetas}

    @classmethod
    def from_wire(cls, task: Task, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """From the same."""
        return cls(index=task.index, client=task.client, **values, thetas=tensors["theta"])


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
