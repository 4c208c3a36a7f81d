"""Stochastic weight averaging in parallel (Gupta, Serrano & DeCoste 2020)."""

import math

from jaxtyping import Float
from torch import Tensor

from dswag.algorithms.server_update import Server
from dswag.algorithms.training import explore
from dswag.config import Config
from dswag.federation.folds import Snapshots
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import last_round, one_worker, pooled_engine


def large_batches(config: Config) -> Config:
    """Settings of the first phase: SGD on the pooled examples with batches W times as large, at √W times the rate.

    That is what W workers do that average their gradients in every step (`test_large_batches_are_averaged_gradients`).
    The paper raises the rate fourfold for batches eight times as large; the root of W is a little more cautious.
    """
    factor = math.sqrt(config.clients)
    last = config.train.final_learning_rate
    return one_worker(config).replaced(
        batch_size=config.local.batch_size * config.clients,
        learning_rate=factor * config.train.learning_rate,
        final_learning_rate=None if last is None else factor * last,
    )


def averaged(trial: Trial) -> Float[Tensor, "d"]:
    """The average of the weights of all workers, each having gone on alone with small batches."""
    theta = last_round(pooled_engine(trial), Server(trial.theta), large_batches(trial.config))
    config = trial.config.replaced(explore_rounds=1, cycles=1, snapshots_per_cycle=1)
    return explore(trial.engine(), theta, config, Snapshots()).fold.result().double().mean(0).to(theta.dtype)


def run(trial: Trial) -> Predictor:
    """Predicts with the average."""
    return trial.from_weights(averaged(trial)[None])


SWAP = Method("swap", "large batches, then workers alone, then their average (Gupta et al. 2020)", run, pools_data=True)
