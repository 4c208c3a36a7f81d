"""Vectors given to clients carry their layout: a model in another order gives the same, or refuses by name."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

import dswag
from dswag import Config, InProcess, Layout, calibrate
from dswag.algorithms.training import collect, evaluate, explore, synchronize
from dswag.core.randomness import DrawFrom, generator_for
from dswag.posterior.gaussian import GaussianPosterior

CONFIG = Config(clients=3, rounds=2, explore_epochs=2, snapshots_per_cycle=2, batch_size=10, holdout=0.3, seed=2)
NAMES = ("first", "norm", "act", "last")


class Named(nn.Module):
    """The same network, whatever the order in which its layers are registered."""

    def __init__(self, order):
        super().__init__()
        with DrawFrom(generator_for(2)):
            made = OrderedDict(first=nn.Linear(6, 5), norm=nn.BatchNorm1d(5), act=nn.Tanh(), last=nn.Linear(5, 3))
        for name in order:
            self.add_module(name, made[name])

    def forward(self, inputs):
        return self.last(self.act(self.norm(self.first(inputs))))


def turned(layout):
    """The same parameters in another order."""
    return Layout(layout.names[::-1], layout.shapes[::-1])


def posterior_in(layout, model, d_seed=0):
    """The same distribution over weights in any layout."""
    own = Layout.of(model)
    rows = own.flatten(model) + 0.1 * torch.randn(4, own.d, generator=generator_for(d_seed))

    def moved(row):
        return layout.flatten(own.views(row))

    return GaussianPosterior(
        mean=moved(rows[0]),
        variance=moved(rows[1].square()),
        deviations=torch.stack([moved(row) for row in rows[2:]]),
        count=4,
        layout=layout,
    )


@pytest.fixture
def engine(make_clients):
    return InProcess(Named(NAMES), make_clients((60, 90, 40)))


def test_a_posterior_in_another_order_predicts_with_the_clients_statistics_of_its_own_weights(engine):
    model, inputs = Named(NAMES), torch.randn(9, 6, generator=generator_for(1))
    posterior = posterior_in(turned(Layout.of(model)), model)
    statistics = [dswag.ensemble(model, posterior.mean[None], inputs, engine=engine, layout=posterior.layout)]
    own = posterior_in(Layout.of(model), model)
    statistics.append(dswag.ensemble(model, own.mean[None], inputs, engine=engine))
    assert torch.equal(statistics[0].probabilities, statistics[1].probabilities)
    found = dswag.predict(model, posterior, inputs, engine=engine, samples=3, seed=5)
    thetas = posterior.sample(5, 3)
    expected = dswag.ensemble(model, thetas, inputs, engine=engine, layout=posterior.layout).probabilities
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_evaluation_and_calibration_follow_the_layout_too(engine):
    model = Named(NAMES)
    own, other = Layout.of(model), turned(Layout.of(model))
    found = [evaluate(engine, layout.flatten(model), CONFIG, layout=layout) for layout in (own, other)]
    assert found[0] == found[1]
    exact = [replace(posterior_in(layout, model), variance=torch.zeros(own.d)) for layout in (own, other)]
    exact = [replace(each, deviations=each.deviations[:0]) for each in exact]  # whose draws are the mean
    fitted = [calibrate(engine, each, CONFIG) for each in exact]
    assert fitted[0].temperature == fitted[1].temperature


@pytest.mark.parametrize("where", ["in this process", "on Flower's nodes"])
def test_clients_whose_model_registers_layers_in_another_order_train_the_same(make_clients, where):
    model, clients = Named(NAMES), make_clients((60, 90, 40))
    layout = Layout.of(model)
    theirs = Named(("last", "act", "norm", "first"))
    assert Layout.of(theirs).names != layout.names
    found = []
    for each in (model, theirs):
        if where == "in this process":
            engine = InProcess(each, clients)
        else:
            flower_grid = pytest.importorskip("flower_grid")
            engine = flower_grid.on_flower(each, clients, workers=1)
        (*_, last) = synchronize(engine, dswag.Server(layout.flatten(model), layout=layout), CONFIG)
        done = explore(engine, last.theta, CONFIG, collect(last.theta, CONFIG, layout), layout=layout)
        found.append((last.theta, done.fold.posterior()))
    # vectorized steps round in another way where a weight lies elsewhere in θ: some 2^-24 of weights below 1, each step
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    for name, tensor in found[0][1].tensors().items():
        torch.testing.assert_close(tensor, found[1][1].tensors()[name], rtol=0, atol=2e-6)


def test_parameters_that_one_side_lacks_are_named(make_clients):
    model = Named(NAMES)
    frozen = Named(NAMES)
    frozen.last.requires_grad_(False)
    layout, fewer = Layout.of(model), Layout.of(frozen)
    clients = make_clients((60, 90, 40))
    with pytest.raises(dswag.ClientError, match=r"θ lacks \['last.weight', 'last.bias'\]"):
        evaluate(InProcess(model, clients), fewer.flatten(model), CONFIG, layout=fewer)
    with pytest.raises(dswag.ClientError, match=r"the model's own θ lacks \['last.weight', 'last.bias'\]"):
        evaluate(InProcess(frozen, clients), layout.flatten(model), CONFIG, layout=layout)
    strange = Layout(("elsewhere", *layout.names[1:]), layout.shapes)
    with pytest.raises(dswag.ClientError, match=r"parameters \['elsewhere'\] are missing"):
        evaluate(InProcess(model, clients), layout.flatten(model), CONFIG, layout=strange)
