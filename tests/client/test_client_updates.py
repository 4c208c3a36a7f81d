"""Every client update against a slow float64 loop from its paper, and against torch.optim."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dswag import Config, InProcess, Layout, Server, collect, explore, synchronize
from dswag.client import work
from dswag.client.replica import Workspace
from dswag.client.training import TrainTask
from dswag.federation.folds import Snapshots
from dswag.federation.local_update import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

BASE = ClientUpdate(batch_size=8, momentum=0.8, weight_decay=0.05)
UPDATES = {
    "SGD": BASE,
    "Nesterov": replace(BASE, nesterov=True),
    "AdamW": replace(BASE, optimizer="adamw"),
    "proximal": replace(BASE, proximal=0.7),
    "clipped": replace(BASE, clip_gradient=0.5),
    "Nesterov, proximal, clipped": replace(BASE, nesterov=True, proximal=0.7, clip_gradient=0.5),
    "AdamW, proximal, clipped": replace(BASE, optimizer="adamw", proximal=0.7, clip_gradient=0.5),
}
TASK = TrainTask(
    index=0, client=0, occasion="a test", learning_rates=(0.1, 0.05, 0.02), snapshots=(1, 2, 3), seed=3, update=BASE
)
each_update = pytest.mark.parametrize("name", UPDATES)


@pytest.fixture
def data(make_clients):
    return make_clients(dtype=torch.float64)[1]


@pytest.fixture
def model(make_model):
    return make_model().double()


def batches_of(task, data):
    generator = torch.Generator().manual_seed(task.seed)
    return [list(data.batches(task.update.batch_size, generator=generator)) for _ in task.learning_rates]


def slow_local_training(task, model, data, lengths):
    """θ after every epoch; `lengths` takes the norms of gradients before they are clipped.

    Polyak's and Nesterov's momentum as in Sutskever et al. 2013, in PyTorch's form; AdamW: Loshchilov & Hutter 2019,
    Algorithm 2; the proximal term: Li et al. 2020, Equation 2; clipping: Pascanu et al. 2013, Algorithm 1.
    """
    layout, update = Layout.of(model), task.update
    start = theta = layout.flatten(model)
    m, v, step = torch.zeros_like(theta), torch.zeros_like(theta), 0
    after = []
    for batches, rate in zip(batches_of(task, data), task.learning_rates, strict=True):
        for inputs, targets in batches:
            leaf = theta.clone().requires_grad_()
            loss = F.cross_entropy(torch.func.functional_call(model, layout.views(leaf), (inputs,)), targets)
            gradient = torch.autograd.grad(loss, leaf)[0] + update.proximal * (theta - start)
            length = float(gradient.square().sum().sqrt())
            lengths.append(length)
            if update.clip_gradient is not None and length > update.clip_gradient:
                gradient = gradient * update.clip_gradient / length
            step += 1
            if update.optimizer == "adamw":
                m = update.momentum * m + (1 - update.momentum) * gradient
                v = 0.999 * v + 0.001 * gradient**2
                mean, square = m / (1 - update.momentum**step), v / (1 - 0.999**step)
                theta = theta - rate * (mean / (square.sqrt() + 1e-8) + update.weight_decay * theta)
            else:
                gradient = gradient + update.weight_decay * theta
                m = update.momentum * m + gradient
                theta = theta - rate * (gradient + update.momentum * m if update.nesterov else m)
        after.append(theta)
    return torch.stack(after)


@each_update
def test_client_updates_are_those_of_a_slow_loop(name, model, data):
    task, lengths = replace(TASK, update=UPDATES[name]), []
    expected = slow_local_training(task, model, data, lengths)
    payload = {"theta": Layout.of(model).flatten(model)}
    found = work.run(task, payload, data, Workspace(model)).thetas
    # torch adds 1e-6 to the norm that it divides by when it clips
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if task.update.clip_gradient else 1e-12)
    if task.update.clip_gradient is not None:
        assert min(lengths) < task.update.clip_gradient < max(lengths)


def test_every_term_of_an_update_matters(model, data):
    payload = {"theta": Layout.of(model).flatten(model)}
    ends = [work.run(replace(TASK, update=u), payload, data, Workspace(model)).thetas[-1] for u in UPDATES.values()]
    ends.append(
        work.run(replace(TASK, update=replace(BASE, weight_decay=0.0)), payload, data, Workspace(model)).thetas[-1]
    )
    distances = torch.pdist(torch.stack(ends))
    assert distances.min() > 1e-3


@pytest.mark.parametrize("name", ["SGD", "Nesterov", "AdamW", "clipped"])
def test_client_updates_are_those_of_torch_optim(name, make_model, make_clients):
    model, data, update = make_model(), make_clients()[1], UPDATES[name]
    task = replace(TASK, update=update)
    found = work.run(task, {"theta": Layout.of(model).flatten(model)}, data, Workspace(model)).thetas
    others = {"weight_decay": update.weight_decay, "foreach": False}
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1, betas=(update.momentum, 0.999), **others)
        if update.optimizer == "adamw"
        else torch.optim.SGD(model.parameters(), lr=1, momentum=update.momentum, nesterov=update.nesterov, **others)
    )
    for row, (batches, rate) in enumerate(zip(batches_of(task, data), task.learning_rates, strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            if update.clip_gradient is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), update.clip_gradient)
            optimizer.step()
        torch.testing.assert_close(found[row], Layout.of(model).flatten(model), rtol=0, atol=2e-6)  # 15 float32 steps


def test_a_strong_proximal_term_holds_clients_near_theta(model, data):
    payload = {"theta": Layout.of(model).flatten(model)}

    def distance(proximal):
        task = replace(TASK, update=replace(BASE, momentum=0.0, weight_decay=0.0, proximal=proximal))
        return (work.run(task, payload, data, Workspace(model)).thetas[-1] - payload["theta"]).norm()

    assert distance(8.0) < distance(1.0) / 2 < distance(0.0) / 2


# --------------------------------------------------------------------------------------------- rates of single clients


def rounds_of(config, model, clients):
    return list(synchronize(InProcess(model, clients), Server(Layout.of(model).flatten(model)), config))


def test_rate_factors_multiply_the_learning_rates_of_each_client_in_both_phases(make_model, make_clients):
    model, clients = make_model(), make_clients()
    settings = {"clients": 3, "rounds": 1, "local_epochs": 2, "explore_epochs": 2, "batch_size": 8}
    factors = (0.5, 1.0, 3.0)
    config = Config.paper(**settings, rate_factors=factors)
    theta = Layout.of(model).flatten(model)
    seen = []

    class Recording(InProcess):
        def answers(self, payload, tasks):
            seen.extend(tasks)
            return super().answers(payload, tasks)

    engine = Recording(model, clients)
    list(synchronize(engine, Server(theta), config))
    explore(engine, theta, config, collect(theta, config))
    assert len(seen) == 6
    for task in seen:
        base = (0.05, 0.05) if task.occasion == "round 1" else (0.01, 0.0055)
        assert task.learning_rates == pytest.approx([factors[task.client] * rate for rate in base])


def test_a_client_with_a_factor_trains_as_with_that_rate(make_model, make_clients):
    model, clients = make_model(), make_clients()
    settings = {"clients": 3, "explore_epochs": 1, "batch_size": 8}
    theta = Layout.of(model).flatten(model)

    def snapshots(**others):
        return explore(InProcess(model, clients), theta, Config(**settings, **others), Snapshots()).fold.result()

    mixed, plain = snapshots(rate_factors=(1.0, 2.0, 1.0)), snapshots()
    doubled = snapshots(explore_learning_rate=0.02)
    order = [int((mixed[i] != plain[i]).any()) for i in range(3)]
    assert sum(order) == 1
    assert torch.equal(mixed[order.index(1)], doubled[order.index(1)])


def test_factors_of_one_are_no_factors(make_model, make_clients):
    model, clients = make_model(), make_clients()
    settings = {"clients": 3, "rounds": 2}
    plain, ones = (
        rounds_of(Config(**settings, **others), model, clients)[-1].theta
        for others in ({}, {"rate_factors": (1.0,) * 3})
    )
    assert torch.equal(plain, ones)


def test_rate_factors_are_a_list_in_a_file(tmp_path):
    path = tmp_path / "config.toml"
    config = Config(clients=3, rate_factors=(1.0, 0.5, 2.0))
    config.to_toml(path)
    assert "rate_factors = [" in path.read_text()
    assert Config.from_toml(path) == config
