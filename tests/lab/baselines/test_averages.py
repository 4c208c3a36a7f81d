"""SWA, SWAG, SWAP and SWAG after distributed training on quadratics, where every step is known in closed form.

With one step of curvature 1 for each epoch at a rate r, the distance to where a client pulls shrinks by 1 - r.
"""

from dataclasses import replace

import pytest
import torch

from dswag import Config, Server
from dswag.algorithms.training import synchronize
from dswag.lab.baselines import median, one_worker_swag, swag_after_training, swap
from dswag.lab.baselines.distributed_swag import posterior as dswag_posterior
from dswag.lab.baselines.method import Trial
from dswag.lab.baselines.phases import federated, last_round, phase_1, plain_sgd, pooled_engine

TARGETS = [torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[5.0, 1.0], [-1.0, 3.0]])]
MEANS = torch.stack([own.mean(0) for own in TARGETS])
CENTER = MEANS.mean(0)
START = torch.tensor([4.0, 4.0])
SETTINGS = {
    "rounds": 3,
    "local_epochs": 2,
    "learning_rate": 0.2,
    "explore_epochs": 4,
    "explore_learning_rate": 0.1,
    "explore_final_learning_rate": 0.02,
}
EXPLORING = [0.1 - k * 0.02 for k in range(4)]
"""Rates of phase 2, from 0.1 towards 0.02 in four epochs."""


@pytest.fixture
def trial(quadratic):
    return quadratic(TARGETS, START, **SETTINGS)


def moved(theta, to, rates):
    """θ after one step at each of the rates."""
    for rate in rates:
        theta = to + (theta - to) * (1 - rate)
    return theta


THETA_T = moved(START, CENTER, [0.2] * 6)


def moments(path):
    stacked = torch.stack(path)
    return stacked.mean(0), stacked.var(0, correction=0)


def check(posterior, path):
    """Against mean and variance of the weights on the path, at float32's precision."""
    mean, variance = moments(path)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, variance)
    assert posterior.count == len(path)


def test_phase_1_is_where_the_clients_pull_together(trial):
    torch.testing.assert_close(trial.shared(phase_1), THETA_T)


def test_federated_averaging_goes_on_at_the_falling_rates_of_phase_2(trial):
    falling = [0.1 - k * (0.1 - 0.02) / 3 for k in range(4)]  # two rounds of two epochs, the last at 0.02
    torch.testing.assert_close(trial.shared(federated), moved(THETA_T, CENTER, falling))


def test_plain_sgd_moves_as_fast_as_sgd_with_momentum_does_at_full_speed():
    config = Config(explore_learning_rate=0.02, momentum=0.75)
    position = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([position], lr=0.02, momentum=0.75)
    places = []
    for _ in range(80):
        position.grad = torch.ones(())
        optimizer.step()
        places.append(position.item())
    assert plain_sgd(config).learning_rate == pytest.approx(places[-2] - places[-1], rel=1e-4)
    assert plain_sgd(config).momentum == 0


def test_swa_on_one_worker_averages_the_weights_after_each_epoch_at_a_constant_rate(quadratic):
    trial = quadratic(TARGETS, START, **{**SETTINGS, "batch_size": 4})  # all examples in one batch
    check(one_worker_swag.posterior(trial), [moved(THETA_T, CENTER, [0.1] * k) for k in range(1, 5)])


def test_swag_global_takes_the_averaged_models_of_further_rounds(trial):
    rounds = [moved(THETA_T, CENTER, [0.1] * 2 * k) for k in range(1, 3)]
    check(swag_after_training.global_posterior(trial), rounds)


def test_swag_global_gets_the_falling_rates_of_explorers_that_are_averaged(quadratic):
    trial = quadratic(TARGETS, START, **{**SETTINGS, "explore_rounds": 4})
    falling = [0.1 - k * (0.1 - 0.02) / 3 for k in range(4)]
    rounds = [moved(THETA_T, CENTER, falling[: 2 * k]) for k in (1, 2)]
    check(swag_after_training.global_posterior(trial), rounds)


def test_explorers_that_are_averaged_end_with_an_epoch_of_their_own(quadratic):
    trial = quadratic(TARGETS, START, **{**SETTINGS, "explore_rounds": 4})
    *together, last = (0.1 - k * (0.1 - 0.02) / 3 for k in range(4))
    check(dswag_posterior(trial), [moved(moved(THETA_T, CENTER, together), own, [last]) for own in MEANS])


def test_swag_local_takes_the_weights_of_the_first_client_alone(trial):
    check(swag_after_training.local_posterior(trial), [moved(THETA_T, MEANS[0], [0.1] * k) for k in range(1, 9)])


def test_dswag_takes_the_weights_with_which_the_explorers_end(trial):
    check(dswag_posterior(trial), [moved(THETA_T, own, EXPLORING) for own in MEANS])


def test_subset_posteriors_are_those_of_each_client_alone(trial):
    for posterior, own in zip(median.subset_posteriors(trial), MEANS, strict=True):
        check(posterior, [moved(THETA_T, own, [0.1] * k) for k in range(1, 5)])


def test_the_median_stays_with_the_majority(quadratic):
    """Four clients at the same place and one far away: the mean follows it, the median does not."""
    targets = [torch.zeros(2, 2)] * 4 + [torch.full((2, 2), 1000.0)]
    trial = quadratic(targets, torch.zeros(2), rounds=1, explore_epochs=2, learning_rate=1e-6)
    assert median.posterior(trial).mean.abs().max() < 0.01
    assert dswag_posterior(trial).mean.min() > 1


def test_swap_averages_the_workers_that_go_on_from_large_batches(quadratic):
    trial = quadratic(TARGETS, START, **SETTINGS)
    large = moved(START, CENTER, [0.2 * 2**0.5] * 6)
    alone = torch.stack([moved(large, own, EXPLORING) for own in MEANS])
    torch.testing.assert_close(swap.averaged(trial), alone.mean(0))


def test_large_batches_are_averaged_gradients(classification):
    """One step on the pooled batch against the mean of the clients' steps at the same rate."""
    problem = classification(holdout=0.0, batch_size=20, momentum=0.0)
    trial = Trial(problem)
    together = replace(swap.large_batches(problem.config), local_epochs=1)
    assert together.batch_size == 80
    apart = replace(problem.config, rounds=1, learning_rate=together.learning_rate)
    large = last_round(pooled_engine(trial), Server(trial.theta), together)
    (step,) = synchronize(trial.engine(), Server(trial.theta), apart)
    torch.testing.assert_close(large, step.theta)
