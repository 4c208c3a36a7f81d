"""Problems whose answers are known: quadratics, Gaussians, and a small classification."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dswag import Config
from dswag.data.examples import Examples
from dswag.lab.baselines.method import Problem, Trial


@pytest.fixture(autouse=True)
def _one_thread(one_intra_op_thread):
    pass


def half_square(outputs, targets):
    """Half the squared distance, summed over outputs: its curvature is 1 in every one of them."""
    return (outputs - targets).square().sum(1).mean() / 2


class Point(nn.Module):
    """Gives θ itself, whatever the input."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, inputs):
        return self.theta.expand(len(inputs), -1)


@pytest.fixture
def quadratic():
    """Clients that each pull θ to the mean of their targets, with a curvature of 1, one step for each epoch."""

    def make(targets, start, **settings):
        clients = [Examples(torch.zeros(len(own), 1), own) for own in targets]
        plain = {"momentum": 0.0, "weight_decay": 0.0, "batch_size": len(clients[0]), **settings}
        return Trial(Problem(Point(start), clients, Config.paper(clients=len(clients), **plain), loss=half_square))

    return make


@pytest.fixture
def classification(make_clients, make_model):
    """A small problem of three classes, fresh each time."""

    def make(sizes=(20, 20, 20, 20), *, model=None, **settings):
        config = replace(
            Config.paper(
                clients=len(sizes),
                rounds=2,
                explore_epochs=3,
                learning_rate=0.1,
                batch_size=8,
                holdout=0.2,
                samples=5,
                seed=3,
            ),
            **settings,
        )
        return Problem(make_model() if model is None else model, make_clients(sizes), config)

    return make
