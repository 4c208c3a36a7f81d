"""Fits the scales of the covariance and the temperature of the predictions, where the data are.

Under label skew the scatter between clients is their drift from one another more than uncertainty. The paper's
covariance has both its parts, within and between clients, at scale 1; here both scales, and a temperature, are those
with which averaged predictions fit examples best that no client trained on. Only sums of losses leave a client.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

import torch
from jaxtyping import Float64
from torch import Tensor

from dswag.client import batch_norm
from dswag.config import Config
from dswag.core.randomness import derive_seed
from dswag.federation.contract import CalibrateResult, CalibrateTask, Draws, Engine, Part
from dswag.federation.round_trip import round_trip
from dswag.posterior.gaussian import GaussianPosterior

SCALES = (1.0, 0.3, 0.1, 0.03, 0.0, 3.0)
TEMPERATURES = (1.0, *(2 ** (step / 8) for step in range(-8, 9) if step))
"""What is tried, the paper's 1 first: it stays where nothing is better."""

SIGNIFICANCE = 2.0
"""Standard errors of its mean gain by which something else must beat the paper's 1: held-out examples are few."""

DRAWS = 10
"""Draws averaged for each pair of scales."""


def calibrate(engine: Engine, posterior: GaussianPosterior, config: Config) -> GaussianPosterior:
    """The posterior with the scales, and then the temperature, that give the held-out examples the lowest NLL.

    They are chosen from a grid, and stay at 1, as in the paper, unless the gain is significant: more than two standard
    errors of its mean over the examples. If no part within clients is known, one scale for the whole covariance is
    fitted. The scales go with the settings' own `scale`, at which they were tried.

    Raises:
        ValueError: no examples were held out.
    """
    inner = SCALES if posterior.variance_within is not None else (1.0,)
    candidates = [
        replace(posterior, within_scale=within, between_scale=between, temperature=1.0)
        for within, between in product(inner, SCALES)
    ]
    draws = tuple(candidate.draws(derive_seed(config.seed, 4), DRAWS, scale=config.scale) for candidate in candidates)
    gains = held_out_gains(engine, posterior, draws, TEMPERATURES, config)
    group = _best(gains.sums[:, 0], gains.squares[:, 0], gains.num_examples)
    hotter = _best(*gains.by_temperature(group), gains.num_examples)
    return replace(candidates[group], temperature=TEMPERATURES[hotter])


def held_out_gains(
    engine: Engine,
    posterior: GaussianPosterior,
    draws: tuple[Draws, ...],
    temperatures: tuple[float, ...],
    config: Config,
) -> "Gains":
    """How much better than the first each group of draws, at each temperature, predicts what the clients held out.

    Raises:
        ValueError: no examples were held out.
    """
    if not config.holdout:
        raise ValueError("calibration needs examples that no client trained on: train with holdout, such as 0.1")
    enough = config.enough_of(engine.num_clients)
    buffers = refreshed_buffers(engine, posterior, draws, config)
    tasks = [
        CalibrateTask(
            index=client,
            client=client,
            occasion="the calibration",
            part=Part(fraction=config.holdout, seed=config.seed, held_out=True),
            batch_size=batch_norm.BATCH_SIZE,
            draws=draws,
            temperatures=temperatures,
        )
        for client in range(engine.num_clients)
    ]
    payload = {**posterior.tensors(), **buffers}
    return round_trip(engine, payload, tasks, SummedGains(), minimum=enough).fold.result()


def refreshed_buffers(
    engine: Engine, posterior: GaussianPosterior, draws: tuple[Draws, ...], config: Config
) -> dict[str, Tensor]:
    """BatchNorm statistics of all draws from what the clients train on, a row for each draw."""
    statistics = batch_norm.refresh(
        engine,
        posterior.tensors(),
        seed=draws[0].seed,
        max_examples=config.batch_norm_examples,
        draws=draws,
        part=config.training_part,
        minimum=config.enough_of(engine.num_clients),
    )
    return {name: torch.stack([of_draw[name] for of_draw in statistics]) for name in statistics[0]}


def _best(sums: Float64[Tensor, "n"], squares: Float64[Tensor, "n"], num_examples: int) -> int:
    """The candidate with the largest mean gain if that is significant, otherwise the first, the paper's."""
    if num_examples < 2:  # one example's gain has no error that could be known
        return 0
    best = int(sums.argmax())
    gain = float(sums[best]) / num_examples
    error = math.sqrt(max(float(squares[best]) / num_examples - gain**2, 0.0) / (num_examples - 1))
    return best if gain > SIGNIFICANCE * error else 0


@dataclass(frozen=True, eq=False)
class Gains:
    """Sums over the held-out examples of all clients, by group of draws and temperature."""

    num_examples: int
    sums: Float64[Tensor, "g t"]
    """Over the first group at the first temperature, and over the same group at the first one, as in the result."""
    squares: Float64[Tensor, "g t"]

    def by_temperature(self, group: int) -> tuple[Float64[Tensor, "t"], Float64[Tensor, "t"]]:
        """A group's sums and sums of squares, all over the group itself at the first temperature, where both are 0."""
        sums, squares = self.sums[group].clone(), self.squares[group].clone()
        sums[0] = squares[0] = 0
        return sums, squares


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
