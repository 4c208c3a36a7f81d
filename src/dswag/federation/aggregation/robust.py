"""A fold for rules that need all clients' weights at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Self

from jaxtyping import Float
from torch import Tensor

from dswag.core.chunked import Rows
from dswag.federation.aggregation.clipping import clipped
from dswag.federation.aggregation.mean import Aggregate
from dswag.federation.client_results import Answers, TrainResult
from dswag.federation.client_sampling import malicious_number
from dswag.federation.coordinates import AllCoordinates, Coordinates

Total = Callable[[Tensor], Tensor]
"""Sums a small tensor over the parts of θ: where one process holds all of θ, the tensor as it is."""

Function = Callable[[Rows, Float[Tensor, "d"], int, Total], Float[Tensor, "d"]]
"""Of the rows [n, d], the θ [d] that the clients start from, how many rows may be malicious, and `total`.

Given the same part [n, p] of all rows and the same part of θ, it gives that part of the outcome, as long as `total`
sums over the parts. So several processes may each hold a part of every row, and none holds all.
"""


@dataclass(frozen=True)
class Rule:
    """A function of the clients' weights that a minority of them cannot lead astray."""

    name: str
    function: Function
    spare: int
    """How many more clients than twice the malicious ones there must be."""

    def malicious(self, byzantine: int | str, clients: int) -> int:
        """How many of so many clients may be malicious (f); raises ValueError where these are too few for the rule."""
        return malicious_number(byzantine, clients, spare=self.spare, rule=self.name)


class Robust:
    """Keeps the last weights of every client, in task order, for a rule: its memory grows with the number of clients.

    `byzantine`, how many clients may be malicious, is a number or a percentage of those that answered. `clip_update` is
    the largest norm of an update, no limit if None.
    """

    def __init__(
        self, anchor: Float[Tensor, "d"], rule: Rule, *, byzantine: int | str, clip_update: float | None = None
    ) -> None:
        self.anchor = anchor
        self.rule = rule
        self.byzantine = byzantine
        self.clip_update = clip_update
        self.answers = Answers(anchor)
        self._coordinates: Coordinates = AllCoordinates()

    def add(self, result: TrainResult) -> None:
        """Keeps a copy of one client's last snapshot."""
        self.answers.add(replace(result, thetas=clipped(result.thetas[-1], self.anchor, self.clip_update)[None]))

    def merge(self, other: Self) -> None:
        """Keeps another fold's too."""
        self.answers.merge(other.answers)

    def result(self) -> Aggregate:
        """What the rule makes of the clients so far.

        Raises:
            ValueError: too few clients for the rule.
        """
        answers, coordinates = self.answers.ordered(), self._coordinates
        if not answers:
            raise ValueError(f"there is no {self.rule.name} of no clients: add a result first")
        byzantine = self.rule.malicious(self.byzantine, len(answers))
        rows, anchor = [answer.thetas[0] for answer in answers], coordinates.part(self.anchor)
        theta = coordinates.whole(self.rule.function(rows, anchor, byzantine, coordinates.total))
        examples = sum(answer.num_examples for answer in answers)
        return Aggregate(theta, len(answers), examples, loss=median(answer.loss for answer in answers))

    def spread(self, coordinates: Coordinates) -> None:
        """From now on the weights kept are a range of the coordinates, the rest of which other processes hold."""
        self._coordinates = coordinates

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""
        return type(self)(self.anchor, self.rule, byzantine=self.byzantine, clip_update=self.clip_update)

    def state(self) -> dict[str, Tensor]:
        """All that was taken in, as `Answers` keeps it."""
        return self.answers.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold whose `state` this is."""
        self.answers.load(state)
