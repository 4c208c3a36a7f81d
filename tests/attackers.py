"""An engine some of whose clients lie, and the lies that they tell."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dswag.core.randomness import generator_for
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import ClientError, Engine, Fold, Payload, Result, Task

Lie = Callable[[Tensor, Tensor, list[Tensor], int], Tensor]
"""Of the snapshots [s, d] that an attacker has trained, the θ [d] it was sent, and all honest snapshots, the attackers
knowing everything; and of a seed."""


class Attacked:
    """An engine whose clients number 0 to `attackers` - 1 answer training tasks with lies."""

    def __init__(self, engine: Engine, attackers: int, lie: Lie) -> None:
        self.engine = engine
        self.attackers = attackers
        self.lie = lie

    @property
    def num_clients(self) -> int:
        return self.engine.num_clients

    @property
    def batch_norm_layers(self) -> Mapping[str, int]:
        return self.engine.batch_norm_layers

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        answers = list(self.engine.answers(payload, tasks))
        honest = [a.thetas for a in answers if isinstance(a, TrainResult) and a.client >= self.attackers]
        for answer in answers:
            if isinstance(answer, TrainResult) and answer.client < self.attackers:
                answer = replace(answer, thetas=self.lie(answer.thetas, payload["theta"], honest, answer.client))
            yield answer

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        self.engine.combine(fold, failure)


def sign_flip(thetas, theta, honest, seed):
    """Ten times its own step, backwards."""
    return theta - 10 * (thetas - theta)


def noise(thetas, theta, honest, seed):
    """Weights with noise that drowns them."""
    return thetas + 30 * torch.randn(thetas.shape, generator=generator_for(seed))


def constant(thetas, theta, honest, seed):
    """The same number everywhere."""
    return torch.full_like(thetas, 3.0)


def collusion(thetas, theta, honest, seed):
    """All attackers the same: ten times the mean step of the honest clients, backwards (Xie et al. 2020)."""
    return theta - 10 * (torch.stack(honest).mean(0) - theta)


def not_a_number(thetas, theta, honest, seed):
    """Nothing that could be averaged."""
    return torch.full_like(thetas, torch.nan)


LIES = {lie.__name__: lie for lie in (sign_flip, noise, constant, collusion)}
