"""Federated averaging (McMahan et al. 2017) for the whole budget: one set of weights, without a posterior."""

from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import federated


def run(trial: Trial) -> Predictor:
    """Goes on with phase 1 where others explore."""
    return trial.from_weights(trial.shared(federated)[None])


FEDAVG = Method("fedavg", "phase 1 for the whole budget (McMahan et al. 2017)", run)
