"""Every optimizer moves every weight as the unfused one of torch.optim does, in whatever dtypes the model computes."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dswag
from dswag.client import work
from dswag.client.replica import Workspace
from dswag.client.training import TrainTask
from dswag.core.parameters import Layout
from dswag.data.examples import Examples
from dswag.federation.contract import ClientError
from dswag.federation.local_update import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

TASK = TrainTask(
    index=0,
    client=0,
    occasion="a test",
    learning_rates=(0.1, 0.05, 0.02),
    snapshots=(1, 2, 3),
    seed=3,
    update=ClientUpdate(batch_size=4, momentum=0.8, weight_decay=0.05),
)


class Experts(nn.Module):
    """A body, two heads of which each batch takes one, and a head that none takes."""

    def __init__(self, body=torch.float32, heads=torch.float32):
        super().__init__()
        self.body = nn.Linear(6, 16).to(body)
        self.first, self.second, self.never = (nn.Linear(16, 3).to(heads) for _ in range(3))

    def forward(self, x):
        hidden = self.body(x.to(self.body.weight.dtype)).tanh().to(self.first.weight.dtype)
        return (self.first if x[0, 0] > 0 else self.second)(hidden)


DTYPES = {
    "single": (torch.float32, torch.float32, 2e-6),
    "double": (torch.float64, torch.float64, 1e-12),
    # a master weight that is rounded otherwise by one bit may be cast to the next number of half precision
    "bfloat16": (torch.bfloat16, torch.bfloat16, 2e-3),
    "float16": (torch.float16, torch.float16, 3e-4),
    "body in bfloat16, heads in single": (torch.bfloat16, torch.float32, 2e-3),
    "body in single, heads in double": (torch.float32, torch.float64, 1e-6),
}
UPDATES = {
    "SGD": {},
    "SGD without momentum": {"momentum": 0.0},
    "Nesterov": {"nesterov": True},
    "AdamW": {"optimizer": "adamw"},
}
GIVEN = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1.0, weight_decay=0.05, foreach=False),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1.0, momentum=0.5, foreach=False),
    "in groups": lambda parameters: torch.optim.SGD(
        [{"params": parameters[:2], "lr": 0.5}, {"params": parameters[2:], "lr": 2.0}], momentum=0.8, foreach=False
    ),
}


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(30, 6, generator=generator)
    return Examples(inputs, inputs[:, :3].argmax(1))


def make(dtypes):
    torch.manual_seed(0)
    return Experts(*DTYPES[dtypes][:2])


def optimizer_of(update, masters):
    settings = {"lr": 1.0, "weight_decay": update.weight_decay, "foreach": False, "fused": False}
    if update.optimizer == "adamw":
        return torch.optim.AdamW(masters, betas=(update.momentum, 0.999), **settings)
    return torch.optim.SGD(masters, momentum=update.momentum, nesterov=update.nesterov, **settings)


def slow(task, model, data, make_optimizer):
    """θ after every epoch: an unfused optimizer of torch on float32 (or float64) copies of each parameter."""
    model, wide = deepcopy(model), Layout.of(model).flatten(model).dtype
    masters = [p.detach().to(wide).clone().requires_grad_() for p in model.parameters()]
    optimizer = make_optimizer(masters)
    initial = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(task.seed)
    after = []
    for rate in task.learning_rates:
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = rate * lr / initial[0]
        for inputs, targets in data.batches(task.update.batch_size, generator=generator):
            for p, master in zip(model.parameters(), masters, strict=True):
                p.data.copy_(master.data)
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(inputs), targets).backward()
            for p, master in zip(model.parameters(), masters, strict=True):
                master.grad = None if p.grad is None else p.grad.to(wide)
            optimizer.step()
        after.append(torch.cat([master.detach().flatten() for master in masters]))
    return torch.stack(after)


def check(found, expected, model, dtypes):
    layout, tolerance = Layout.of(model), DTYPES[dtypes][2]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    start, end = layout.views(layout.flatten(model)), layout.views(found[-1])
    for name in layout.names:
        moved = (end[name] - start[name]).abs().max()
        assert moved == 0 if name.startswith("never") else moved > 10 * tolerance, name


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("update", UPDATES)
def test_every_update_moves_the_weights_that_are_used_and_no_others(update, dtypes, data):
    model = make(dtypes)
    task = replace(TASK, update=replace(TASK.update, **UPDATES[update]))
    if update == "AdamW":
        task = replace(task, learning_rates=(0.02, 0.01, 0.005))
    found = work.run(task, {"theta": Layout.of(model).flatten(model)}, data, Workspace(model)).thetas
    check(found, slow(task, model, data, lambda masters: optimizer_of(task.update, masters)), model, dtypes)


@pytest.mark.parametrize("dtypes", ["single", "double", "bfloat16"])
@pytest.mark.parametrize("optimizer", GIVEN)
def test_an_optimizer_of_one_s_own_moves_them_too(optimizer, dtypes, data):
    model = make(dtypes)
    task = replace(TASK, learning_rates=(0.01, 0.02, 0.005))
    workspace = Workspace(model, optimizer=GIVEN[optimizer])
    found = work.run(task, {"theta": Layout.of(model).flatten(model)}, data, workspace).thetas
    check(found, slow(task, model, data, GIVEN[optimizer]), model, dtypes)


def test_steps_too_small_for_half_precision_add_up(data):
    torch.manual_seed(0)
    model = nn.Linear(6, 3).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)  # beside which a step must be 1/256 at least to be seen in bfloat16
    task = replace(TASK, learning_rates=(0.001,) * 40, snapshots=(40,))
    thetas = work.run(
        task,
        {"theta": Layout.of(model).flatten(model)},
        Examples(data.inputs.bfloat16(), data.targets),
        Workspace(model),
    ).thetas
    weights = Layout.of(model).views(thetas[0])["weight"]
    assert (weights - 1).abs().mean() > 1 / 256


def test_a_posterior_of_a_half_precision_model_is_in_single_precision(data):
    torch.manual_seed(0)
    model = nn.Linear(6, 3).bfloat16()
    clients = [(x.bfloat16(), y) for x, y in zip(data.inputs.split(15), data.targets.split(15), strict=True)]
    run = dswag.train(model, clients, dswag.Config(clients=2, rounds=5))
    assert run.theta.dtype == run.posterior.mean.dtype == run.posterior.variance.dtype == torch.float32
    assert run.history[-1].loss < run.history[0].loss
    run.posterior.mean_into(model)
    assert model.weight.dtype == torch.bfloat16
    assert dswag.predict(model, run.posterior, clients[0][0]).shape == (15, 3)


def test_proximal_term_and_clipping_leave_unused_weights_alone(data):
    model = make("single")
    update = replace(TASK.update, proximal=0.5, clip_gradient=0.1)
    layout = Layout.of(model)
    theta = layout.flatten(model)
    thetas = work.run(replace(TASK, update=update), {"theta": theta}, data, Workspace(model)).thetas
    assert torch.equal(layout.views(thetas[-1])["never.weight"], layout.views(theta)["never.weight"])


def test_an_unused_parameter_gets_no_variance(data):
    model = make("single")
    clients = [(x, y) for x, y in zip(data.inputs.split(15), data.targets.split(15), strict=True)]
    config = dswag.Config(clients=2, rounds=3, cycles=5, weight_decay=0.1)
    posterior = dswag.train(model, clients, config).posterior
    views = posterior.layout.views(posterior.variance)
    assert not views["never.weight"].any()
    assert views["first.weight"].all()
    assert torch.equal(posterior.layout.views(posterior.mean)["never.weight"], model.never.weight)


# ---------------------------------------------------------------------------------------------------------- schedules


def test_a_schedule_is_stepped_after_every_minibatch_and_replaces_the_rates(data):
    model, rates = make("single"), []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def optimizer(parameters):
        made = Recording(parameters, lr=0.1)
        return made, torch.optim.lr_scheduler.ExponentialLR(made, 0.5)

    task = replace(TASK, learning_rates=(7.0, 8.0), snapshots=(2,))
    for _ in range(2):  # and begins anew in every task
        rates.clear()
        work.run(task, {"theta": Layout.of(model).flatten(model)}, data, Workspace(model, optimizer=optimizer))
        assert rates == pytest.approx([0.1 * 0.5**step for step in range(16)])  # 8 minibatches an epoch


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (lambda parameters: None, r"a function of the parameters that returns a torch\.optim\.Optimizer.*got NoneType"),
        (lambda parameters: torch.optim.LBFGS(parameters), "LBFGS evaluates the loss several times a step"),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.0), "must not be 0: others relate to it"),
    ],
)
def test_what_is_no_optimizer_for_clients_is_refused(optimizer, words, data):
    model = make("single")
    with pytest.raises(ClientError, match=words):
        work.run(TASK, {"theta": Layout.of(model).flatten(model)}, data, Workspace(model, optimizer=optimizer))


def test_train_takes_an_optimizer(data):
    model = make("single")
    clients = [(x, y) for x, y in zip(data.inputs.split(15), data.targets.split(15), strict=True)]
    config = dswag.Config(clients=2, rounds=2, learning_rate=0.01)
    adam = dswag.train(model, clients, config, optimizer=torch.optim.Adam)
    same = dswag.train(model, clients, config, optimizer=torch.optim.Adam)
    plain = dswag.train(model, clients, config)
    assert torch.equal(adam.theta, same.theta)
    assert not torch.equal(adam.theta, plain.theta)
