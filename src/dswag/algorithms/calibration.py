"""Fits the scales of the covariance and the temperature of the predictions, where the data are.

Under label skew the scatter between clients is their drift from one another more than uncertainty. The paper's
covariance has both its parts, within and between clients, at scale 1; here scales and a temperature are those with
which averaged predictions fit examples best that no client trained on. Only sums of losses leave a client.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from dswag.client import batch_norm
from dswag.client.calibration import CalibrateTask, Gains, SummedGains
from dswag.client.statistics import refresh
from dswag.config import Config
from dswag.core.randomness import derive_seed
from dswag.federation.contract import Engine, Part
from dswag.federation.folds import prefixed
from dswag.federation.layouts import with_layout
from dswag.federation.round_trip import round_trip
from dswag.posterior.draws import Draws
from dswag.posterior.gaussian import GaussianPosterior

SCALES = (1.0, 0.3, 0.1, 3.0)
"""Of the whole covariance, where no part within clients is known."""

PAIRS = ((1.0, 1.0), (0.3, 0.3), (3.0, 3.0), (1.0, 0.0), (0.3, 0.0))
"""Of the parts within and between clients."""

TEMPERATURES = (1.0, *(2 ** (step / 8) for step in range(-8, 9) if step))

SIGNIFICANCE = 1.0
"""Standard errors of its gain by which draws must beat the mean: held-out examples are few."""

FEW, PENALTY = 1000, 300.0
"""With fewer held-out examples than these, (ln T)² costs up to so many nats in all."""

DRAWS = 10
"""Draws averaged for each scale: with those of the mean, at most 51 in all."""


def calibrate(engine: Engine, posterior: GaussianPosterior, config: Config) -> GaussianPosterior:
    """The posterior with the scale and the temperature that together give the held-out examples the lowest NLL.

    Each scale on the grid, 0 included, is tried at its own best temperature. The scale is 0, the mean alone, unless the
    gain of another is above a standard error. If the parts within and between clients are known apart, each has a
    scale. Few held-out examples keep the temperature near 1. The scales go with the settings' own `scale`, at which
    they were tried.

    Raises:
        ValueError: no examples were held out.
    """
    pairs = PAIRS if posterior.variance_within is not None else [(scale, scale) for scale in SCALES]
    candidates = [
        replace(posterior, within_scale=within, between_scale=between, temperature=1.0)
        for within, between in ((0.0, 0.0), *pairs)
    ]
    seed = derive_seed(config.seed, 4)
    numbers = [1, *[DRAWS] * len(pairs)]
    draws = tuple(c.draws(seed, n, scale=config.predict.scale) for c, n in zip(candidates, numbers, strict=True))
    group, temperature = _best(held_out_gains(engine, posterior, draws, TEMPERATURES, config))
    return replace(candidates[group], temperature=TEMPERATURES[temperature])


def _best(gains: Gains) -> tuple[int, int]:
    """The group and the temperature with the lowest penalized NLL if that is significant; else the first group's."""
    n = max(gains.num_examples, 1)
    logs = gains.sums.new_tensor(TEMPERATURES).log()
    penalty = PENALTY * max(0.0, 1 - n / FEW) * logs.square()
    costs = penalty - gains.sums
    temperatures = costs.argmin(1).tolist()
    group = int(costs.min(1).values.argmin())
    here, there = temperatures[0], temperatures[group]
    gain = float(gains.sums[group, there] - gains.sums[0, here]) / n
    error = math.sqrt(max(float(gains.squares[group, there, here]) / n - gain**2, 0.0) / max(n - 1, 1))
    lowered = float(costs[0, here] - costs[group, there]) / n
    return (group, there) if n > 1 and lowered > SIGNIFICANCE * error else (0, here)


def held_out_gains(
    engine: Engine,
    posterior: GaussianPosterior,
    draws: tuple[Draws, ...],
    temperatures: tuple[float, ...],
    config: Config,
) -> Gains:
    """How much better than the first each group of draws, at each temperature, predicts what the clients held out.

    Raises:
        ValueError: no examples were held out.
    """
    if not config.calibration.holdout:
        raise ValueError("calibration needs examples that no client trained on: train with holdout, such as 0.1")
    enough = config.enough_of(engine.num_clients)
    buffers = refreshed_buffers(engine, posterior, draws, config)
    tasks = [
        CalibrateTask(
            index=client,
            client=client,
            occasion="the calibration",
            part=Part(fraction=config.calibration.holdout, seed=config.seed, held_out=True),
            batch_size=batch_norm.BATCH_SIZE,
            draws=draws,
            temperatures=temperatures,
        )
        for client in range(engine.num_clients)
    ]
    payload = {**with_layout(posterior.tensors(), posterior.layout), **buffers}
    return round_trip(engine, payload, tasks, SummedGains(), minimum=enough).fold.result()


def refreshed_buffers(
    engine: Engine, posterior: GaussianPosterior, draws: tuple[Draws, ...], config: Config
) -> dict[str, Tensor]:
    """BatchNorm statistics of all draws from what the clients train on, for a payload: a row for each draw."""
    statistics = refresh(
        engine,
        with_layout(posterior.tensors(), posterior.layout),
        seed=draws[0].seed,
        max_examples=config.predict.batch_norm_examples,
        draws=draws,
        part=config.training_part,
        minimum=config.enough_of(engine.num_clients),
    )
    rows = {name: torch.stack([of_draw[name] for of_draw in statistics]) for name in statistics[0]}
    return prefixed("buffer", rows)
