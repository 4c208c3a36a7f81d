"""Calibration on a client: what scales of the covariance and temperatures gain on examples that it held out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float64
from torch import Tensor

from dswag.client.draws import classes, loaded_in_turn
from dswag.client.replica import Workspace
from dswag.client.work import examples_of
from dswag.data.examples import ClientData
from dswag.evaluation.metrics import nll_of_rows
from dswag.evaluation.temperature import temper
from dswag.federation.contract import Payload, Result, Task
from dswag.federation.result_validation import check_count, check_tensor
from dswag.posterior.draws import Draws


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrateResult(Result):
    """What a client answers to a `CalibrateTask`: sums over its examples, by group of draws and temperature."""

    num_examples: int
    gains: Float64[Tensor, "g t"]
    """Sums of how much lower the negative log likelihood is than that of the first group at the first temperature."""
    squares: Float64[Tensor, "g t u"]
    """Sums of the squares of each example's gain over the first group, where that has the u-th temperature."""


@dataclass(frozen=True, kw_only=True)
class CalibrateTask(Task):
    """Measure the averaged predictions of each group of draws from the payload's posterior, at each temperature.

    Buffers in the payload have a row for each draw, in the order of the groups.
    """

    batch_size: int
    draws: tuple[Draws, ...]
    temperatures: tuple[float, ...]

    result: ClassVar[type[Result]] = CalibrateResult

    @property
    def makes_draws(self) -> bool:
        """From the payload's posterior."""
        return True

    def run(self, payload: Payload, data: ClientData, workspace: Workspace) -> CalibrateResult:
        """What each group of draws, averaged (Algorithm 2, line 4), gains over the first, and by each temperature."""
        workspace.eval()
        batches = list(examples_of(self, data, self.batch_size))
        nll: list[list[Tensor]] = []
        first = 0
        for draws in self.draws:
            total = torch.zeros(())
            for _ in loaded_in_turn(self, payload, draws, workspace, first=first):
                with torch.inference_mode():
                    scores, targets = classes(workspace, batches)
                total = total + scores.double().softmax(1)
            first += draws.count
            averaged = total / draws.count
            nll.append([nll_of_rows(temper(averaged, temperature), targets) for temperature in self.temperatures])
        losses = torch.stack([torch.stack(of_group) for of_group in nll]).cpu()
        gains = losses[0, 0] - losses
        squares = [(losses[0] - of_group[:, None]).square().sum(2) for of_group in losses]
        return CalibrateResult(
            index=self.index,
            client=self.client,
            num_examples=gains.shape[2],
            gains=gains.sum(2),
            squares=torch.stack(squares),
        )

    def validated(self, result: Any, payload: Payload) -> Any:
        """Sums for every group and temperature, as they are."""
        grid = (len(self.draws), len(self.temperatures))
        check_count("num_examples", result.num_examples, least=0)
        check_tensor("gains", result.gains, grid, torch.float64)
        check_tensor("squares", result.squares, (*grid, len(self.temperatures)), torch.float64, least=0)
        return result


@dataclass(frozen=True, eq=False)
class Gains:
    """Sums over the held-out examples of all clients, by group of draws and temperature."""

    num_examples: int
    sums: Float64[Tensor, "g t"]
    """Over the first group at the first temperature."""
    squares: Float64[Tensor, "g t u"]
    """Over the first group at the u-th temperature."""


class SummedGains:
    """The clients' gains of every candidate, added up in place."""

    def __init__(self) -> None:
        self._gains: Gains | None = None

    def add(self, result: CalibrateResult) -> None:
        """Takes in one client's."""
        self._take(Gains(result.num_examples, result.gains, result.squares))

    def merge(self, other: Self) -> None:
        """Takes in another fold's."""
        if other._gains is not None:
            self._take(other._gains)

    def result(self) -> Gains:
        """The sums so far."""
        if self._gains is None:
            raise ValueError("there are no gains of no clients: add a result first")
        return self._gains

    def empty(self) -> Self:
        """The gains of no clients."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """The sums, if there are any."""
        gains = self._gains
        if gains is None:
            return {}
        return {"num_examples": torch.tensor(gains.num_examples), "sums": gains.sums, "squares": gains.squares}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the sums of another."""
        self._gains = None
        if state:
            self._gains = Gains(int(state["num_examples"]), state["sums"].clone(), state["squares"].clone())

    def _take(self, more: Gains) -> None:
        mine = self._gains
        if mine is None:
            self._gains = more
        else:
            sums, squares = mine.sums + more.sums, mine.squares + more.squares
            self._gains = Gains(mine.num_examples + more.num_examples, sums, squares)
