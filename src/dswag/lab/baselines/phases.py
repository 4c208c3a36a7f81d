"""Parts of training that several methods share, each at the budget of a phase of Algorithm 1."""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.algorithms.server_update import Server
from dswag.algorithms.training import explore, synchronize
from dswag.config import Config
from dswag.data.examples import Examples
from dswag.federation.client_sampling import cohort_size
from dswag.federation.contract import Engine
from dswag.federation.folds import Snapshots
from dswag.lab.baselines.method import Trial

ConfigT = TypeVar("ConfigT", bound=Config)


def phase_1(trial: Trial) -> Float[Tensor, "d"]:
    """θ_T, from which many methods go on."""
    return last_round(trial.engine(), Server(trial.theta), trial.config)


def federated(trial: Trial) -> Float[Tensor, "d"]:
    """θ after further rounds whose rates fall as in phase 2: the whole budget spent on one set of weights."""
    start = Server(trial.shared(phase_1), trial.config.train.rounds)
    return last_round(trial.engine(), start, further(trial.config))


def explored(trial: Trial) -> Float[Tensor, "s d"]:
    """The snapshots of phase 2, explorer by explorer."""
    theta = trial.shared(phase_1)
    return explore(trial.engine(), theta, trial.config, Snapshots()).fold.result()


def alone(trial: Trial) -> Float[Tensor, "d"]:
    """θ of one worker that has all examples, after as many epochs as phase 1 costs."""
    return last_round(pooled_engine(trial), Server(trial.theta), one_worker(trial.config))


def last_round(engine: Engine, start: Server, config: Config) -> Float[Tensor, "d"]:
    """θ after all rounds of phase 1."""
    theta = start.theta
    for done in synchronize(engine, start, config):
        theta = done.theta
    return theta


def pooled_engine(trial: Trial) -> Engine:
    """One client with the examples of all."""
    clients = trial.problem.clients
    inputs, targets = (torch.cat([getattr(data, name) for data in clients]) for name in ("inputs", "targets"))
    return trial.engine(clients=[Examples(inputs, targets, clients[0].augmentation)])


def one_worker(config: Config) -> Config:
    """Settings for one worker that has all examples, for as many epochs over them as the phases cost."""
    participating = cohort_size(config.train.clients_per_round, config.clients)
    exploring = cohort_size(config.explore.explorers, config.clients)
    return one_client(config, config.explore.epochs * exploring // config.clients).replaced(
        rounds=1,
        local_epochs=max(1, config.train.rounds * config.train.local_epochs * participating // config.clients),
    )


def one_client(config: Config, epochs: int) -> Config:
    """Settings for a phase 2 of a single client with these epochs, at least two, and a snapshot after each.

    At the constant rate α₁, as in Izmailov et al. 2018, Section 3.2, and Maddox et al. 2019.
    """
    alone = config.replaced(
        clients=1,
        clients_per_round=1,
        explorers=1,
        min_clients=1,
        explore_epochs=max(2, epochs),
        explore_rounds=1,
        cycles=1,
        snapshots_per_cycle=2,
    )
    return snapshot_every_epoch(alone)


def snapshot_every_epoch(config: Config) -> Config:
    """The settings with a constant rate in phase 2, and a snapshot of every explorer after each of its epochs."""
    rate, _ = config.replaced(explore_rounds=1).explore_learning_rates
    return config.replaced(
        explore_rounds=1,
        explore_learning_rate=rate,
        explore_final_learning_rate=rate,
        cycles=1,
        snapshots_per_cycle=config.explore.epochs,
    )


def further(config: ConfigT, *, constant: bool = False) -> ConfigT:
    """Settings for the rounds, at least two, that cost what phase 2 does, to go on with where phase 1 ended.

    Rates fall over them from α₁ to α₂ of phase 2, or stay at α₁.
    """
    client_epochs = config.explore.epochs * cohort_size(config.explore.explorers, config.clients)
    rounds = max(
        2, client_epochs // (config.train.local_epochs * cohort_size(config.train.clients_per_round, config.clients))
    )
    first, last = config.explore_learning_rates
    last = first if constant else last
    # `synchronize` draws one line over all rounds: the one that is at α₁ where the further ones begin
    slope = (last - first) / (rounds * config.train.local_epochs - 1)
    return config.replaced(
        rounds=config.train.rounds + rounds,
        learning_rate=first - slope * config.train.rounds * config.train.local_epochs,
        explore_learning_rate=first,
        explore_final_learning_rate=last,
        final_learning_rate=last,
    )


def plain_sgd(config: Config) -> Config:
    """The settings with clients that take steps along the minibatch's gradient, weight decay's included, and no more.

    At the constant rate at which SGD with the momentum of phase 2 moves as fast.
    """
    rate = config.explore_learning_rates[0] / (1 - config.local.momentum)
    return config.replaced(
        learning_rate=rate,
        final_learning_rate=None,
        optimizer="sgd",
        momentum=0.0,
        nesterov=False,
        proximal=0.0,
        clip_gradient=None,
        max_loss_growth=1e30,  # a chain may climb from where it starts
    )
