"""Updates of bounded length, before any rule sees them (Sun et al. 2019, "Can You Really Backdoor FL?")."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from dswag.aggregation.mean import Aggregate, Mean
from dswag.aggregation.robust import Robust
from dswag.tasks import Coordinates, TrainResult, spread

RuleT = TypeVar("RuleT", Mean, Robust)


class Clipped(Generic[RuleT]):
    """A rule whose clients' updates θ_i - anchor are shortened to a norm of at most `limit`; shorter ones stay.

    No client then moves a mean of n further than limit / n, wherever it is.
    """

    def __init__(self, rule: RuleT, limit: float) -> None:
        self.rule: RuleT = rule
        self.limit = limit

    def add(self, result: TrainResult) -> None:
        """Takes in one client's last snapshot, shortened."""
        anchor = self.rule.anchor
        update = result.thetas[-1].double() - anchor.double()
        length = float(torch.linalg.vector_norm(update))
        if length > self.limit:
            clipped = update.mul_(self.limit / length).add_(anchor).to(anchor.dtype)
            result = replace(result, thetas=clipped[None])
        self.rule.add(result)

    def merge(self, other: Self) -> None:
        """Takes in what another fold took in."""
        self.rule.merge(other.rule)

    def result(self) -> Aggregate:
        """What the rule makes of the updates so far."""
        return self.rule.result()

    def spread(self, coordinates: Coordinates) -> None:
        """Tells the rule."""
        spread(self.rule, coordinates)

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""
        return type(self)(self.rule.empty(), self.limit)

    def state(self) -> dict[str, Tensor]:
        """All that was taken in."""
        return self.rule.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold whose `state` this is."""
        self.rule.load(state)
