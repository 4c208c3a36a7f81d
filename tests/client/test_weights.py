"""Convolutions' weights lie with their channels last within a replica, and nobody outside can tell."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dswag
from dswag.client import work
from dswag.client.evaluation import EvaluateTask
from dswag.client.replica import Workspace
from dswag.client.statistics import StatisticsTask
from dswag.client.training import TrainTask
from dswag.client.weights import Weights
from dswag.core.parameters import Layout
from dswag.data.examples import Examples
from dswag.federation.local_update import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

TASK = TrainTask(
    index=0,
    client=0,
    occasion="a test",
    learning_rates=(0.1, 0.05),
    snapshots=(1, 2),
    seed=3,
    update=ClientUpdate(batch_size=8, momentum=0.9, weight_decay=0.01, proximal=0.1, clip_gradient=1.0),
)


class Viewing(nn.Module):
    """Takes a `view`, which needs what convolutions give in its usual order."""

    def forward(self, x):
        return x.view(len(x), -1)


def network(flatten=nn.Flatten, batch_norm=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.MaxPool2d(2),
        flatten(),
        nn.Linear(3 * 16, 3),
    )


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(30, 1, 8, 8, generator=generator), torch.arange(30) % 3)


def slow(model, data, update):
    """θ after every epoch, by PyTorch's own optimizer and layout."""
    model, layout = deepcopy(model), Layout.of(model)
    start, after = layout.flatten(model), []
    settings = {"lr": 1, "weight_decay": update.weight_decay, "foreach": False}
    optimizer = (
        torch.optim.AdamW(model.parameters(), betas=(update.momentum, 0.999), **settings)
        if update.optimizer == "adamw"
        else torch.optim.SGD(model.parameters(), momentum=update.momentum, **settings)
    )
    generator = torch.Generator().manual_seed(TASK.seed)
    for rate in TASK.learning_rates:
        optimizer.param_groups[0]["lr"] = rate
        for inputs, targets in data.batches(update.batch_size, generator=generator):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            for p, anchor in zip(model.parameters(), layout.views(start).values(), strict=True):
                p.grad.add_(p.detach() - anchor, alpha=update.proximal)
            torch.nn.utils.clip_grad_norm_(model.parameters(), update.clip_gradient)
            optimizer.step()
        after.append(layout.flatten(model))
    return torch.stack(after)


@pytest.mark.parametrize("flatten", [nn.Flatten, Viewing])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_is_that_of_the_usual_layout(flatten, optimizer, dtype, data):
    model = network(flatten).to(dtype)
    examples = Examples(data.inputs.to(dtype), data.targets)
    update = replace(TASK.update, optimizer=optimizer)
    workspace = Workspace(model)
    assert workspace.weights.channels_last == (dtype == torch.float32)
    found = work.run(replace(TASK, update=update), {"theta": Layout.of(model).flatten(model)}, examples, workspace)
    assert workspace.weights.channels_last == (flatten is nn.Flatten and dtype == torch.float32)
    # AdamW divides by the size of gradients, some of which are all rounding
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5 if optimizer == "sgd" else 5e-3}[dtype]
    torch.testing.assert_close(found.thetas, slow(model, examples, update), rtol=0, atol=tolerance)


def test_an_optimizer_of_one_s_own_sees_the_shapes_of_the_parameters(data):
    model, shapes = network(), []

    def optimizer(parameters):
        shapes.extend(p.shape for p in parameters)
        return torch.optim.SGD(parameters, lr=1.0, momentum=0.9, weight_decay=0.01)

    payload = {"theta": Layout.of(model).flatten(model)}
    update = replace(TASK.update, proximal=0.0)
    own, same = (
        work.run(replace(TASK, update=update), payload, data, Workspace(model, optimizer=given)).thetas
        for given in (optimizer, None)
    )
    assert shapes == [p.shape for p in model.parameters()]
    torch.testing.assert_close(own, same, rtol=0, atol=1e-6)


def test_theta_goes_in_and_comes_out_in_the_order_of_the_layout():
    model = network()
    weights = Weights(Layout.of(model), model)
    theta = torch.randn(weights.layout.d)
    weights.load(theta)
    assert weights.channels_last
    assert torch.equal(weights.snapshot(), theta)
    assert torch.equal(weights.layout.flatten(model), theta)
    assert model[0].weight.grad.stride() == model[0].weight.stride() == (9, 1, 3, 1)  # one input channel
    assert model[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[3].weight.is_contiguous()  # a convolution in groups
    weights.make_contiguous()
    assert torch.equal(weights.snapshot(), theta)
    assert torch.equal(weights.theta, theta)
    assert model[4].weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_that_are_casts_have_it_too(dtype):
    model = network().to(dtype)
    before = Layout.of(model).flatten(model)
    weights = Weights(Layout.of(model), model)
    assert model[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights.layout.flatten(model), before)


@pytest.mark.parametrize("flatten", [nn.Flatten, Viewing])
def test_statistics_evaluation_and_predictions_settle_it_by_themselves(flatten, data):
    model = network(flatten, batch_norm=True)
    payload = {"theta": Layout.of(model).flatten(model)}
    plain = deepcopy(model)
    task = StatisticsTask(index=0, client=0, occasion="a refresh", batch_size=10, max_examples=None, seed=0)
    (found,) = work.run(task, payload, data, Workspace(model)).statistics
    assert found["1"].count == 30 * 64
    inputs = plain[0](data.inputs).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["1"].mean, inputs.mean(1), rtol=0, atol=1e-6)
    evaluated = work.run(EvaluateTask(index=0, client=0, occasion="e", batch_size=8), payload, data, Workspace(model))
    expected = F.cross_entropy(plain.eval()(data.inputs), data.targets, reduction="sum").item()
    assert evaluated.loss_sum == pytest.approx(expected, rel=1e-5)
    model.requires_grad_(False)[7].requires_grad_(True)
    theta = Layout.of(model).flatten(model)
    probabilities = dswag.ensemble(model, theta[None], data.inputs).probabilities
    torch.testing.assert_close(probabilities, plain(data.inputs).softmax(1), rtol=0, atol=1e-6)


def test_trying_the_layout_changes_nothing_else(data):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.01 * torch.rand_like(x)

    model = nn.Sequential(network(batch_norm=True), Noisy())
    workspace = Workspace(model)
    workspace.train()
    state = torch.get_rng_state()
    buffers = deepcopy(dict(workspace.module.named_buffers()))
    workspace.settle(data.inputs)
    assert workspace.module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in workspace.module.named_buffers())
