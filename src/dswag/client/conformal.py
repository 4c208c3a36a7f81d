"""Conformal scores on a client: how many of its held-out examples' scores lie in each bin."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Int64
from torch import Tensor

from dswag.client.draws import classes, loaded_in_turn
from dswag.client.replica import Workspace
from dswag.client.work import examples_of
from dswag.core.conformal_scores import Scoring
from dswag.core.outputs import mean_and_noise
from dswag.data.examples import Batch, ClientData
from dswag.evaluation.temperature import temper
from dswag.federation.contract import ClientError, Payload, Result, Task
from dswag.federation.result_validation import MOST, check_tensor
from dswag.posterior.draws import Draws


@dataclass(frozen=True, eq=False, kw_only=True)
class ConformalResult(Result):
    """What a client answers to a `ConformalTask`."""

    counts: Int64[Tensor, "b"]
    """How many scores lie in each bin of the task's scoring, up to the last that is filled; none without examples."""


@dataclass(frozen=True, kw_only=True)
class ConformalTask(Task):
    """Count the conformal scores of the averaged predictions of draws from the payload's posterior.

    Buffers in the payload have a row for each draw.
    """

    batch_size: int
    draws: Draws
    temperature: float
    scoring: Scoring
    noise: float | None = None
    """Variance of the targets of a regression, for a model that does not return it."""

    result: ClassVar[type[Result]] = ConformalResult

    @property
    def makes_draws(self) -> bool:
        """From the payload's posterior."""
        return True

    def run(self, payload: Payload, data: ClientData, workspace: Workspace) -> ConformalResult:
        """Counts of the conformal scores that the draws' averaged predictions have (Algorithm 2, line 4)."""
        workspace.eval()
        batches = list(examples_of(self, data, self.batch_size))
        drawn = loaded_in_turn(self, payload, self.draws, workspace)
        if self.scoring.of_classes:
            total = torch.zeros(())
            for _ in drawn:
                with torch.inference_mode():
                    logits, labels = classes(workspace, batches)
                total = total + logits.double().softmax(1)
            probabilities = temper(total / self.draws.count, self.temperature)
            scores = self.scoring.classes(probabilities).gather(1, labels[:, None])
        else:
            targets = torch.cat([targets for _, targets in batches]).to(workspace.device)
            scores = self.scoring.residuals(*self._moments(workspace, batches, targets, drawn), targets)
        if not bool(torch.isfinite(scores).all()):
            raise ClientError(self, "conformal scores are not finite: look for NaN in the data, or for variances of 0")
        return ConformalResult(index=self.index, client=self.client, counts=self.scoring.counts(scores))

    def _moments(
        self, workspace: Workspace, batches: Sequence[Batch], targets: Tensor, drawn: Iterator[None]
    ) -> tuple[Tensor, Tensor]:
        """Predictive mean and variance by the law of total variance."""
        means, variances = [], []
        for _ in drawn:
            with torch.inference_mode():
                parts = [mean_and_noise(workspace.outputs(inputs), self.noise) for inputs, _ in batches]
            mean, variance = map(torch.cat, zip(*parts, strict=True))
            if mean.shape != targets.shape:
                raise ValueError(f"means must have the targets' shape {list(targets.shape)}, got {list(mean.shape)}")
            means.append(mean)
            variances.append(variance)
        stacked = torch.stack(means)
        return stacked.mean(0), torch.stack(variances).mean(0) + stacked.var(0, correction=0)

    def validated(self, result: Any, payload: Payload) -> Any:
        """Counts of no more bins than there are, as they are."""
        check_tensor("counts", result.counts, None, torch.int64, least=0)
        if len(result.counts) > self.scoring.most_bins or int(result.counts.sum()) > MOST:
            raise ValueError(f"counts must be of at most {self.scoring.most_bins} bins and 2^48 examples")
        return result


def summed(counts: list[Int64[Tensor, "b"]]) -> Int64[Tensor, "b"]:
    """Counts of several, of which some may end before others."""
    total = torch.zeros(max(map(len, counts)), dtype=torch.int64)
    for each in counts:
        total[: len(each)] += each
    return total


class CountedScores:
    """Each client's counts; memory for a few kilobytes for each client."""

    def __init__(self) -> None:
        self._counts: dict[int, Tensor] = {}

    def add(self, result: ConformalResult) -> None:
        """Takes in one client's."""
        self._take(result.client, result.counts.cpu())

    def merge(self, other: Self) -> None:
        """Takes in another fold's."""
        for client, counts in other._counts.items():
            self._take(client, counts)

    def result(self) -> dict[int, Int64[Tensor, "b"]]:
        """The counts of each client, in the order of their numbers."""
        if not self._counts:
            raise ValueError("there are no scores of no clients: add a result first")
        return {client: self._counts[client] for client in sorted(self._counts)}

    def empty(self) -> Self:
        """The counts of no clients."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """All counts, one after another, and how many of them are each client's."""
        if not self._counts:
            return {}
        clients = sorted(self._counts)
        lengths = [(client, len(self._counts[client])) for client in clients]
        return {
            "counts": torch.cat([self._counts[client] for client in clients]),
            "clients": torch.tensor(lengths, dtype=torch.int64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the counts of another."""
        self._counts = {}
        if state:
            clients, lengths = state["clients"].T.tolist()
            parts = torch.split(state["counts"].clone(), lengths)
            self._counts = dict(zip(clients, parts, strict=True))

    def _take(self, client: int, counts: Tensor) -> None:
        mine = self._counts.get(client)
        self._counts[client] = counts.clone() if mine is None else summed([mine, counts])
