"""Fits the scales of the covariance and the temperature of the predictions, where the data are.

Under label skew the scatter between clients is their drift from one another more than uncertainty. The paper's
covariance has both its parts, within and between clients, at scale 1; here both scales, and a temperature, are those
with which averaged predictions fit examples best that no client trained on. Only sums of losses leave a client.
"""

import math
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Float64
from torch import Tensor

from dswag.client import batch_norm
from dswag.client.calibration import CalibrateTask, Gains, SummedGains
from dswag.client.statistics import refresh
from dswag.config import Config
from dswag.core.randomness import derive_seed
from dswag.federation.contract import Engine, Part
from dswag.federation.folds import prefixed
from dswag.federation.round_trip import round_trip
from dswag.posterior.draws import Draws
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
    draws = tuple(
        candidate.draws(derive_seed(config.seed, 4), DRAWS, scale=config.predict.scale) for candidate in candidates
    )
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
    payload = {**posterior.tensors(), **buffers}
    return round_trip(engine, payload, tasks, SummedGains(), minimum=enough).fold.result()


def refreshed_buffers(
    engine: Engine, posterior: GaussianPosterior, draws: tuple[Draws, ...], config: Config
) -> dict[str, Tensor]:
    """BatchNorm statistics of all draws from what the clients train on, for a payload: a row for each draw."""
    statistics = refresh(
        engine,
        posterior.tensors(),
        seed=draws[0].seed,
        max_examples=config.predict.batch_norm_examples,
        draws=draws,
        part=config.training_part,
        minimum=config.enough_of(engine.num_clients),
    )
    rows = {name: torch.stack([of_draw[name] for of_draw in statistics]) for name in statistics[0]}
    return prefixed("buffer", rows)


def _best(sums: Float64[Tensor, "n"], squares: Float64[Tensor, "n"], num_examples: int) -> int:
    """The candidate with the largest mean gain if that is significant, otherwise the first, the paper's."""
    if num_examples < 2:  # one example's gain has no error that could be known
        return 0
    best = int(sums.argmax())
    gain = float(sums[best]) / num_examples
    error = math.sqrt(max(float(squares[best]) / num_examples - gain**2, 0.0) / (num_examples - 1))
    return best if gain > SIGNIFICANCE * error else 0
