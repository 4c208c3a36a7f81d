"""A small network for real digits that are spread over ten clients: what quick runs to an accuracy need."""

from functools import cache

import torch
from torch import nn

import dswag
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data import datasets
from dswag.data.examples import Examples
from dswag.evaluation.metrics import score


@cache
def setting():
    """Model, engine of ten clients, and the test set, of `mnist5k`."""
    digits = datasets.load("mnist5k")
    train, test = (
        Examples((part.inputs.flatten(1) / 255 - 0.13) / 0.31, part.targets) for part in (digits.train, digits.test)
    )
    with DrawFrom(generator_for(0)):
        model = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    order = torch.randperm(len(train), generator=generator_for(1))
    return model, dswag.InProcess(model, [train[part] for part in order.tensor_split(10)]), test


def start():
    """The server before the first round."""
    model, _, _ = setting()
    return dswag.Server(dswag.Layout.of(model).flatten(model))


def scores_of(posterior, samples=10):
    """Of predictions with draws from a posterior, on the test set."""
    model, _, test = setting()
    return score(dswag.predict(model, posterior, test.inputs, samples=samples), test.targets)


def accuracy_of(theta):
    """On the test set."""
    model, _, test = setting()
    return score(dswag.ensemble(model, theta[None], test.inputs).probabilities, test.targets).accuracy
