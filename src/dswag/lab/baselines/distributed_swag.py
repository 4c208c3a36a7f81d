"""Distributed SWAG itself, with its mean alone and with scales and temperature fitted."""

import torch

from dswag.algorithms.calibration import calibrate
from dswag.algorithms.training import collect
from dswag.federation.client_results import TrainResult
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import explored, phase_1
from dswag.posterior.gaussian import GaussianPosterior


def posterior(trial: Trial) -> GaussianPosterior:
    """What Algorithm 1 returns."""
    thetas = trial.shared(explored)
    moments = collect(trial.shared(phase_1), trial.config, trial.layout)
    per_client = trial.config.explore.cycles * trial.config.explore.snapshots_per_cycle
    for index, snapshots in enumerate(torch.split(thetas, per_client)):
        moments.add(TrainResult(index=index, client=index, thetas=snapshots, num_examples=1, loss=0.0))
    return moments.finish()


def dswag(trial: Trial) -> Predictor:
    """Algorithms 1 and 2."""
    return trial.from_posterior(posterior(trial), scale=trial.config.predict.scale)


def mean(trial: Trial) -> Predictor:
    """The posterior's mean as one set of weights."""
    return trial.from_posterior(posterior(trial), "mean")


def calibrated(trial: Trial) -> Predictor:
    """Algorithms 1 and 2 with what held-out examples say of the covariance and the temperature."""
    return trial.from_posterior(
        calibrate(trial.engine(), posterior(trial), trial.config), scale=trial.config.predict.scale
    )


DSWAG = Method("dswag", "Distributed SWAG, Algorithms 1 and 2", dswag)
DSWAG_MEAN = Method("dswag-mean", "the mean of Distributed SWAG's posterior, one set of weights", mean)
DSWAG_CALIBRATED = Method(
    "dswag-calibrated", "Distributed SWAG, scales and temperature fitted to held-out examples", calibrated, holdout=True
)
