"""Ensembles of what the explorers end with, and of draws around it as in FedBE (Chen & Chao 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Dirichlet

from dswag.core.randomness import DrawFrom, generator_for
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import explored
from dswag.posterior.moments import Moments


def dirichlet_draws(
    thetas: Float[Tensor, "s d"], n: int, *, seed: int, concentration: float = 1.0
) -> Float[Tensor, "n d"]:
    """Convex combinations Σ γ_i θ_i with γ ~ Dirichlet(concentration · 1), FedBE's second distribution.

    Their mean is that of the θ_i, their covariance that of the θ_i divided by s · concentration + 1.
    """
    alpha = torch.full((len(thetas),), concentration, dtype=torch.float64)
    with DrawFrom(generator_for(seed)):
        weights = Dirichlet(alpha).sample((n,)).to(thetas.device)
    mean = thetas.double().mean(0)
    return (mean + weights @ (thetas.double() - mean)).to(thetas.dtype)


def gaussian_draws(thetas: Float[Tensor, "s d"], n: int, *, seed: int) -> Float[Tensor, "n d"]:
    """Draws from the diagonal Gaussian with the mean and the variance of the θ_i, FedBE's first distribution."""
    moments = Moments(thetas[0], rank=0)
    for theta in thetas:
        moments.add(theta)
    return moments.posterior().sample(seed, n, kind="diagonal")


def clients_ensemble(trial: Trial) -> Predictor:
    """Averages over all explorers' snapshots."""
    return trial.from_weights(trial.shared(explored))


def fedbe_gaussian(trial: Trial) -> Predictor:
    """Averages over Gaussian draws, the clients' weights and their mean."""
    thetas = trial.shared(explored)
    return _with_clients(trial, gaussian_draws(thetas, trial.config.predict.samples, seed=trial.prediction_seed))


def fedbe_dirichlet(trial: Trial) -> Predictor:
    """Averages over random convex combinations, the clients' weights and their mean."""
    thetas = trial.shared(explored)
    return _with_clients(trial, dirichlet_draws(thetas, trial.config.predict.samples, seed=trial.prediction_seed))


def _with_clients(trial: Trial, draws: Float[Tensor, "n d"]) -> Predictor:
    """FedBE's ensemble (its Algorithm 1): draws, clients and mean; the distillation that follows there is left out."""
    thetas = trial.shared(explored)
    return trial.from_weights(torch.cat([thetas.mean(0, keepdim=True), thetas, draws]))


ENSEMBLE = Method("ensemble", "average over what the explorers predict", clients_ensemble)
FEDBE_GAUSSIAN = Method(
    "fedbe-gaussian", "average over Gaussian draws around the clients (Chen & Chao 2021)", fedbe_gaussian
)
FEDBE_DIRICHLET = Method(
    "fedbe-dirichlet", "average over mixtures of the clients' weights (Chen & Chao 2021)", fedbe_dirichlet
)
