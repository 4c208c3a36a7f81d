"""Fits the scales of the covariance and the temperature of the predictions, where the data are.

Under label skew the scatter between clients is their drift from one another more than uncertainty. The paper's
covariance has both its parts, within and between clients, at scale 1; here both scales, and a temperature, are those
with which averaged predictions fit examples best that no client trained on. Only sums of losses leave a client.
"""

from dataclasses import replace
from itertools import product
from typing import Self

import torch
from jaxtyping import Float64
from torch import Tensor

from dswag import batch_norm
from dswag.config import Config
from dswag.posterior import GaussianPosterior
from dswag.randomness import derive_seed
from dswag.tasks import CalibrateResult, CalibrateTask, Engine, Part

SCALES = (1.0, 0.3, 0.1, 0.03, 0.0, 3.0)
TEMPERATURES = (1.0, *(2 ** (step / 8) for step in range(-8, 9) if step))
"""What is tried, the paper's 1 first: it stays where nothing is better."""

DRAWS = 10
"""Draws averaged for each pair of scales."""


def calibrate(engine: Engine, posterior: GaussianPosterior, config: Config) -> GaussianPosterior:
    """The posterior with those scales and that temperature of a grid that give held-out examples the lowest NLL.

    Without a part within clients the one scale is that of the whole.

    Raises:
        ValueError: no examples were held out.
    """
    if not config.holdout:
        raise ValueError("calibration needs examples that no client trained on: train with holdout, such as 0.1")
    inner = SCALES if posterior.variance_within is not None else (1.0,)
    candidates = [
        replace(posterior, within_scale=within, between_scale=between, temperature=1.0)
        for within, between in product(inner, SCALES)
    ]
    seed = derive_seed(config.seed, 4)
    draws = tuple(candidate.draws(seed, DRAWS) for candidate in candidates)
    statistics = batch_norm.refresh(
        engine,
        posterior.tensors(),
        seed=seed,
        max_examples=config.batch_norm_examples,
        draws=draws,
        part=config.training_part,
    )
    buffers = {name: torch.stack([of_draw[name] for of_draw in statistics]) for name in statistics[0]}
    tasks = [
        CalibrateTask(
            index=client,
            client=client,
            occasion="the calibration",
            part=Part(fraction=config.holdout, seed=config.seed, held_out=True),
            batch_size=batch_norm.BATCH_SIZE,
            draws=draws,
            temperatures=TEMPERATURES,
        )
        for client in range(engine.num_clients)
    ]
    losses = engine.reduce({**posterior.tensors(), **buffers}, tasks, SummedLosses()).result()
    best, hottest = divmod(int(losses.argmin()), len(TEMPERATURES))
    return replace(candidates[best], temperature=TEMPERATURES[hottest])


class SummedLosses:
    """The clients' summed losses of every candidate."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, result: CalibrateResult) -> None:
        """Takes in one client's."""
        self._sums = result.nll_sums.clone() if self._sums is None else self._sums + result.nll_sums

    def merge(self, other: Self) -> None:
        """Takes in another fold's."""
        if other._sums is not None:
            self._sums = other._sums if self._sums is None else self._sums + other._sums

    def result(self) -> Float64[Tensor, "g t"]:
        """Summed negative log likelihoods, by group of draws and temperature."""
        if self._sums is None:
            raise ValueError("there are no losses of no clients: add a result first")
        return self._sums
