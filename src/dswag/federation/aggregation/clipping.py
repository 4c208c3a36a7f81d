"""Updates of bounded length, before any rule sees them (Sun et al. 2019, "Can You Really Backdoor FL?")."""

from dataclasses import replace
from typing import Self

import torch

from dswag.federation.aggregation.mean import Mean
from dswag.federation.aggregation.robust import Robust
from dswag.federation.contract import TrainResult
from dswag.federation.fold_wrapper import Around


class Clipped(Around[Mean | Robust]):
    """A rule whose clients' updates θ_i - anchor are shortened to a norm of at most `limit`; shorter ones stay.

    No client then moves a mean of n further than limit / n, wherever it is.
    """

    def __init__(self, rule: Mean | Robust, limit: float) -> None:
        super().__init__(rule)
        self.limit = limit

    def add(self, result: TrainResult) -> None:
        """Takes in one client's last snapshot, shortened."""
        anchor = self.fold.anchor
        update = result.thetas[-1].double() - anchor.double()
        length = float(torch.linalg.vector_norm(update))
        if length > self.limit:
            clipped = update.mul_(self.limit / length).add_(anchor).to(anchor.dtype)
            result = replace(result, thetas=clipped[None])
        super().add(result)

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""
        return type(self)(self.fold.empty(), self.limit)
