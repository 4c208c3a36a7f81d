"""The median of the clients' posteriors (Minsker et al. 2014, the paper's reference [17])."""

import torch

from dswag.algorithms.training import explore
from dswag.federation.folds import Snapshots
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import phase_1, snapshot_every_epoch
from dswag.posterior.combining import wasserstein_median
from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.moments import Moments


def subset_posteriors(trial: Trial) -> list[GaussianPosterior]:
    """For each explorer, the diagonal Gaussian over its own weights after each epoch alone at the constant rate α₁."""
    theta, config = trial.shared(phase_1), snapshot_every_epoch(trial.config)
    thetas = explore(trial.engine(), theta, config, Snapshots()).fold.result()
    posteriors = []
    for snapshots in torch.split(thetas, config.explore.epochs):
        moments = Moments(theta, rank=0, layout=trial.layout)
        for snapshot in snapshots:
            moments.add(snapshot)
        posteriors.append(moments.posterior())
    return posteriors


def posterior(trial: Trial) -> GaussianPosterior:
    """Their Wasserstein median."""
    return wasserstein_median(subset_posteriors(trial))


def run(trial: Trial) -> Predictor:
    """Draws from the median."""
    return trial.from_posterior(posterior(trial), "diagonal")


MEDIAN = Method("median", "median of the clients' posteriors (Minsker et al. 2014)", run)
