"""A fold for rules that need all clients' weights at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.aggregation.mean import Aggregate
from dswag.cohorts import cohort_size
from dswag.rows import Rows
from dswag.tasks import TrainResult

Total = Callable[[Tensor], Tensor]
"""Sums a small tensor over the parts of θ: where one process holds all of θ, the tensor as it is."""


@dataclass(frozen=True)
class Rule:
    """A function of the clients' weights that a minority of them cannot lead astray."""

    name: str
    function: Callable[[Rows, Float[Tensor, "d"], int, Total], Float[Tensor, "d"]]
    """Of the rows [n, d], the θ [d] that the clients start from, how many rows may be malicious, and `total`.

    Given the same part [n, p] of all rows and the same part of θ, it gives that part of the outcome, as long as `total`
    sums over the parts. So several processes may each hold a part of every row, and none holds all.
    """
    spare: int
    """How many more clients than twice the malicious ones there must be."""

    def malicious(self, byzantine: int | float, count: int) -> int:
        """How many of so many clients may be malicious, given as a number or a fraction (f).

        Raises:
            ValueError: too few clients for the rule.
        """
        number = byzantine if isinstance(byzantine, int) else cohort_size(byzantine, count)
        required = 2 * number + self.spare
        if count < required:
            raise ValueError(
                f"{self.name} needs at least {required} clients where {number} may be malicious, got {count}: "
                "sample more clients, or lower byzantine"
            )
        return number


class Robust:
    """Keeps the last weights of every client, in task order, for a rule: its memory grows with the number of clients.

    `byzantine`, how many clients may be malicious, is a number or a fraction of those that answered.
    """

    def __init__(self, anchor: Float[Tensor, "d"], rule: Rule, *, byzantine: int | float) -> None:
        self.anchor = anchor
        self.rule = rule
        self.byzantine = byzantine
        self._results: list[TrainResult] = []  # with the last weights alone

    @property
    def results(self) -> list[TrainResult]:
        """What the clients answered, with their last weights alone, in task order."""
        return sorted(self._results, key=lambda result: result.index)

    def add(self, result: TrainResult) -> None:
        """Keeps a copy of one client's last snapshot."""
        self._results.append(replace(result, thetas=result.thetas[-1:].clone()))

    def merge(self, other: Self) -> None:
        """Keeps another fold's too."""
        self._results.extend(other._results)

    def combine(self, rows: Rows, anchor: Float[Tensor, "p"], total: Total) -> Float[Tensor, "p"]:
        """What the rule makes of a part of θ, given that part of every client's row, in task order.

        Raises:
            ValueError: too few clients for the rule.
        """
        if not rows:
            raise ValueError(f"there is no {self.rule.name} of no clients: add a result first")
        return self.rule.function(rows, anchor, self.rule.malicious(self.byzantine, len(rows)), total)

    def result(self) -> Aggregate:
        """What the rule makes of the clients so far."""
        results = self.results
        theta = self.combine([result.thetas[0] for result in results], self.anchor, lambda tensor: tensor)
        examples = sum(result.num_examples for result in results)
        loss = sum(result.loss * result.num_examples for result in results) / examples
        return Aggregate(theta, len(results), examples, loss)

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""
        return type(self)(self.anchor, self.rule, byzantine=self.byzantine)

    def state(self) -> dict[str, Tensor]:
        """All that was taken in: "rows" [n, d], and of each row the client's numbers [n], in task order."""
        results = self.results
        rows = (
            torch.cat([result.thetas for result in results]) if results else self.anchor.new_empty(0, len(self.anchor))
        )
        numbers = [(result.index, result.client, result.num_examples) for result in results]
        return {
            "rows": rows,
            "numbers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 3),
            "losses": torch.tensor([result.loss for result in results], dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold whose `state` this is."""
        described = zip(state["rows"], state["numbers"].tolist(), state["losses"].tolist(), strict=True)
        self._results = [
            TrainResult(index=index, client=client, thetas=row[None], num_examples=examples, loss=loss)
            for row, (index, client, examples), loss in described
        ]
