"""Means of the clients' weights, plain and by numbers of examples (McMahan et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.federation.aggregation.clipping import clipped
from dswag.federation.client_results import TrainResult


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The aggregated θ of one round, with what the history wants to know of the clients."""

    theta: Float[Tensor, "d"]
    num_clients: int
    num_examples: int
    loss: float
    """Mean training loss of the clients' last local epoch, each example weighing the same.

    Under robust rules the median of the clients' losses, since numbers of examples and losses are what clients claim.
    """


class Mean:
    """The mean of the clients' last weights, accumulated in place as a float64 sum.

    `weighted` weighs each client by its number of examples (there, Algorithm 1), otherwise all weigh the
    same, as the paper's Section 5 says. Double-width sums of the weights themselves, which are exact in float64, keep
    the outcome within half a unit in the last place of float32, so that the order of the clients hardly matters.
    `anchor` is the θ that the clients start from; `clip_update` is the largest norm of an update, no limit if None.
    """

    def __init__(self, anchor: Float[Tensor, "d"], *, weighted: bool = False, clip_update: float | None = None) -> None:
        self.anchor = anchor
        self.weighted = weighted
        self.clip_update = clip_update
        self._sum = torch.zeros_like(anchor, dtype=torch.float64)
        self._weight = 0.0
        self._loss_sum = 0.0
        self._num_examples = 0
        self._num_clients = 0

    def add(self, result: TrainResult) -> None:
        """Takes in one client's last snapshot."""
        weight = float(result.num_examples) if self.weighted else 1.0
        self._sum.add_(clipped(result.thetas[-1], self.anchor, self.clip_update), alpha=weight)
        self._weight += weight
        self._loss_sum += result.loss * result.num_examples
        self._num_examples += result.num_examples
        self._num_clients += 1

    def merge(self, other: Self) -> None:
        """Takes in the sums of another fold."""
        self._sum.add_(other._sum)
        self._weight += other._weight
        self._loss_sum += other._loss_sum
        self._num_examples += other._num_examples
        self._num_clients += other._num_clients

    def empty(self) -> Self:
        """A mean of the same kind of no clients."""
        return type(self)(self.anchor, weighted=self.weighted, clip_update=self.clip_update)

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        numbers = (self._weight, self._loss_sum, self._num_examples, self._num_clients)
        return {"sum [d]": self._sum, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the sums of another."""
        self._sum = state["sum [d]"].clone()
        self._weight, self._loss_sum, num_examples, num_clients = state["numbers"].tolist()
        self._num_examples, self._num_clients = int(num_examples), int(num_clients)

    def result(self) -> Aggregate:
        """The mean so far."""
        if not self._num_clients:
            raise ValueError("there is no mean of no clients: add a result first")
        theta = (self._sum / self._weight).to(self.anchor.dtype)
        return Aggregate(theta, self._num_clients, self._num_examples, self._loss_sum / self._num_examples)
