"""Equal noise on all weights, its scale tuned: the control that a posterior must beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.algorithms.calibration import DRAWS, held_out_gains
from dswag.config import Config
from dswag.core.randomness import derive_seed
from dswag.federation.contract import Engine
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import explored
from dswag.posterior.gaussian import GaussianPosterior

STANDARD_DEVIATIONS = (0.0, *(2.0 ** (step / 2) for step in range(-20, 1)))
"""What is tried, by factors of √2 from 0.001 to 1."""


def tuned(engine: Engine, mean: Float[Tensor, "d"], config: Config) -> GaussianPosterior:
    """N(mean, s² I) with the s whose averaged predictions give held-out examples the lowest NLL, on the clients."""
    unit = GaussianPosterior(
        mean=mean, variance=torch.ones_like(mean), deviations=mean.new_empty(0, len(mean)), count=1
    )
    seed = derive_seed(config.seed, 4)
    draws = tuple(unit.draws(seed, DRAWS, kind="diagonal", scale=std**2) for std in STANDARD_DEVIATIONS)
    gains = held_out_gains(engine, unit, draws, (1.0,), config)
    std = STANDARD_DEVIATIONS[int(gains.sums[:, 0].argmax())]
    return GaussianPosterior(mean=mean, variance=torch.full_like(mean, std**2), deviations=unit.deviations, count=1)


def run(trial: Trial) -> Predictor:
    """Draws around the mean of the explorers' weights, where Distributed SWAG has its own."""
    mean = trial.shared(explored).double().mean(0).to(trial.theta.dtype)
    return trial.from_posterior(tuned(trial.engine(), mean, trial.config), "diagonal")


NOISE = Method("noise", "equal Gaussian noise on the mean weights, tuned on held-out examples", run, holdout=True)
