"""The server's optimizers against slow float64 loops from their papers, and on real digits."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from real_digits import accuracy_of, setting, start

from dswag import Config, InProcess, Layout, Server, synchronize
from dswag.algorithms import server_update
from dswag.core.randomness import generator_for

SETTINGS = {
    "plain": {"server_learning_rate": 0.7},
    "momentum": {"server_learning_rate": 0.3, "server_momentum": 0.8},
    "nesterov": {"server_learning_rate": 0.3, "server_momentum": 0.8},
    "adagrad": {"server_learning_rate": 0.05, "server_momentum": 0.6, "server_epsilon": 0.1},
    "yogi": {
        "server_learning_rate": 0.05,
        "server_momentum": 0.6,
        "server_second_momentum": 0.7,
        "server_epsilon": 0.5,
    },
    "adam": {
        "server_learning_rate": 0.05,
        "server_momentum": 0.6,
        "server_second_momentum": 0.7,
        "server_epsilon": 0.1,
    },
}
each_optimizer = pytest.mark.parametrize("optimizer", SETTINGS)


def config_for(optimizer, **others):
    return Config(**{"clients": 3, "server_optimizer": optimizer, **SETTINGS[optimizer], **others})


def aggregates(count=7, d=6):
    return torch.randn(count, d, generator=generator_for(1), dtype=torch.float64)


def slow_path(optimizer, theta, aggregates, config):
    """θ of one coordinate after every round: Hsu et al. 2019, Section 4, and Reddi et al. 2021, Algorithm 2."""
    eta, tau = config.server_learning_rate, config.server_epsilon
    beta1, beta2 = config.server_momentum, config.server_second_momentum
    m, v, path, signs = 0.0, tau**2, [], set()
    for aggregate in aggregates:
        delta = aggregate - theta
        if optimizer == "plain":
            theta = theta + eta * delta
        elif optimizer == "momentum":
            m = beta1 * m + delta
            theta = theta + eta * m
        elif optimizer == "nesterov":
            m = beta1 * m + delta
            theta = theta + eta * (delta + beta1 * m)
        else:
            m = beta1 * m + (1 - beta1) * delta
            if optimizer == "adagrad":
                v = v + delta**2
            elif optimizer == "yogi":
                sign = math.copysign(1, v - delta**2)
                signs.add(sign)
                v = v - (1 - beta2) * delta**2 * sign
            else:
                v = beta2 * v + (1 - beta2) * delta**2
            theta = theta + eta * m / (math.sqrt(v) + tau)
        path.append(theta)
    return path, signs


@each_optimizer
def test_steps_are_those_of_a_slow_loop_over_several_rounds(optimizer):
    config, given = config_for(optimizer), aggregates()
    state = Server(torch.linspace(-1, 1, 6, dtype=torch.float64))
    slow = [
        slow_path(optimizer, x, column, config)
        for x, column in zip(state.theta.tolist(), given.T.tolist(), strict=True)
    ]
    for number, aggregate in enumerate(given):
        state = server_update.step(state, aggregate, config)
        expected = [path[number] for path, _ in slow]
        torch.testing.assert_close(state.theta, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)
    assert state.round == len(given)
    if optimizer == "yogi":  # both branches were taken
        assert set.union(*(signs for _, signs in slow)) == {1.0, -1.0}


@each_optimizer
def test_a_step_changes_nothing_that_it_was_given(optimizer):
    config, given = config_for(optimizer), aggregates()
    state = server_update.step(Server(torch.ones(6, dtype=torch.float64)), given[0], config)
    tensors = [state.theta, given[1], *(t for t in (state.momentum, state.second_moment) if t is not None)]
    before = [tensor.clone() for tensor in tensors]
    server_update.step(state, given[1], config)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


def test_plain_with_a_rate_of_one_is_the_aggregate_bit_for_bit():
    aggregate = torch.randn(1000, generator=generator_for(0)) * 1e-3
    state = server_update.step(Server(torch.full((1000,), 1e4)), aggregate, Config())
    assert torch.equal(state.theta, aggregate)
    assert state.momentum is None
    assert state.second_moment is None


def test_nesterov_is_that_of_torch():
    config = config_for("nesterov", server_learning_rate=0.7, server_momentum=0.9)
    theirs = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    optimizer = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    ours = Server(theirs.detach().clone())
    for aggregate in aggregates():
        theirs.grad = theirs.detach() - aggregate
        optimizer.step()
        ours = server_update.step(ours, aggregate, config)
        torch.testing.assert_close(ours.theta, theirs.detach(), rtol=1e-13, atol=1e-14)


@each_optimizer
def test_where_the_clients_stay_the_server_stays(optimizer):
    theta = torch.randn(9, generator=generator_for(2))
    assert torch.equal(server_update.step(Server(theta), theta.clone(), config_for(optimizer)).theta, theta)


@each_optimizer
def test_a_run_resumed_in_the_middle_gives_the_same_bits(optimizer, make_model, make_clients):
    model = make_model()
    engine = InProcess(model, make_clients())
    config = config_for(optimizer, rounds=5, local_epochs=2, final_learning_rate=0.01)
    whole = list(synchronize(engine, Server(Layout.of(model).flatten(model)), config))
    halfway = list(islice(synchronize(engine, Server(Layout.of(model).flatten(model)), config), 2))[-1].server
    stored = replace(  # as it would come back from a file
        halfway,
        theta=halfway.theta.clone(),
        momentum=None if halfway.momentum is None else halfway.momentum.clone(),
        second_moment=None if halfway.second_moment is None else halfway.second_moment.clone(),
    )
    rest = list(synchronize(engine, stored, config))
    assert [done.number for done in rest] == [3, 4, 5]
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(rest, whole[2:], strict=True))


SENSIBLE = {
    "plain": {},
    "momentum": {"server_learning_rate": 0.3},
    "nesterov": {"server_learning_rate": 0.3},
    "adagrad": {"server_learning_rate": 0.03, "server_momentum": 0.0},
    "yogi": {"server_learning_rate": 0.01},
    "adam": {"server_learning_rate": 0.01},
}


@each_optimizer
@pytest.mark.usefixtures("one_intra_op_thread")
def test_every_optimizer_learns_real_digits(optimizer):
    config = Config(rounds=8, server_optimizer=optimizer, **SENSIBLE[optimizer])
    final = list(synchronize(setting()[1], start(), config))[-1]
    assert accuracy_of(final.theta) > 0.8
