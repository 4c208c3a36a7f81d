"""Flower's local differential privacy on our messages: what leaves a node is clipped and noised, or nothing leaves."""

import math
import sys

import numpy as np
import pytest
import torch
from folding import fold_answers

from dswag.client.statistics import StatisticsTask
from dswag.client.training import TrainTask
from dswag.core.parameters import Layout
from dswag.core.randomness import derive_seed
from dswag.engines.in_process import InProcess
from dswag.federation.contract import ClientError
from dswag.federation.folds import Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import round_trip

flower_grid = pytest.importorskip("flower_grid", reason="needs flwr: pip install 'dswag[flower]'")
pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

from flower_processes import EXAMPLE  # noqa: E402
from flwr.clientapp.mod import LocalDpMod  # noqa: E402

from dswag.engines.flower import Flower  # noqa: E402

SIZES = (20, 33, 11, 26)
NORM = 0.25


def tasks(clients=range(4), **options):
    given = {"learning_rates": (0.01, 0.1), "snapshots": (1, 2), "update": ClientUpdate(batch_size=8), **options}
    return [
        TrainTask(index=index, client=client, occasion="round 1", seed=derive_seed(client), **given)
        for index, client in enumerate(clients)
    ]


@pytest.fixture
def updates(make_model, make_clients):
    """The clients' updates through a federation with the mod, and those that no mod has touched; a row a client."""

    def updates(sensitivity, **options):
        model, clients = make_model(), make_clients(SIZES)
        mod = LocalDpMod(clipping_norm=NORM, sensitivity=sensitivity, epsilon=0.5, delta=1e-5)
        engine = Flower(flower_grid.federation(model, clients, nodes=4, mods=[mod]), model, 4, patience=0)
        theta = Layout.of(model).flatten(model)
        through_both = [
            round_trip(e, {"theta": theta}, tasks(**options), Snapshots()).fold.result().view(4, -1, len(theta)) - theta
            for e in (engine, InProcess(model, clients))
        ]
        return [update.flatten(1).double() for update in through_both]

    return updates


def test_what_leaves_a_node_is_its_update_shortened_to_the_norm(updates):
    private, plain = updates(sensitivity=0)
    lengths = plain.norm(dim=1, keepdim=True)
    assert (lengths > NORM).any()
    # by the definition of clipping, over both snapshots together; 2^-24 of θ, of up to 1, is lost where it is added
    torch.testing.assert_close(private, plain * (NORM / lengths).clamp_max(1), rtol=1e-6, atol=2**-23)


def test_short_updates_are_left_as_they_are(updates):
    private, plain = updates(sensitivity=0, learning_rates=(1e-4,), snapshots=(1,))
    assert plain.norm(dim=1).max() < NORM
    torch.testing.assert_close(private, plain, rtol=1e-6, atol=2**-23)


def test_the_noise_is_that_of_the_gaussian_mechanism(updates):
    np.random.seed(3)  # noqa: NPY002 - Flower's mod draws from there
    noised, _ = updates(sensitivity=2 * NORM)
    clipped, _ = updates(sensitivity=0)
    noise = noised - clipped
    # Dwork & Roth 2014, theorem A.1, whose ε is below 1; the standard deviation of n values is off by 1/√(2n) of itself
    expected, n = 2 * NORM * math.sqrt(2 * math.log(1.25 / 1e-5)) / 0.5, noise.numel()
    assert noise.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))
    assert abs(noise.mean().item()) < 5 * expected / math.sqrt(n)


def test_bfloat16_differences_do_not_leave_past_the_mod(updates):
    with pytest.raises(ClientError, match=r"client 0 failed in round 1: its node answered with error 6: LocalDpMod"):
        updates(sensitivity=1, upload="bfloat16")


def test_a_node_with_several_clients_sends_nothing_past_the_mod(make_model, make_clients):
    model, mod = make_model(), LocalDpMod(clipping_norm=NORM, sensitivity=1, epsilon=1, delta=1e-5)
    engine = flower_grid.on_flower(model, make_clients(SIZES), workers=2, mods=[mod])
    with pytest.raises(ClientError, match="error 6: LocalDpMod expects exactly one ArrayRecord"):
        round_trip(engine, {"theta": Layout.of(model).flatten(model)}, tasks(), Snapshots())


def test_sums_of_batch_norm_pass_the_mod_untouched(make_model, make_clients):
    model, clients = make_model(batch_norm=True), make_clients(SIZES)
    mod = LocalDpMod(clipping_norm=NORM, sensitivity=1, epsilon=1, delta=1e-5)
    found = []
    size = {"batch_size": 9, "max_examples": None, "seed": 0}
    task = StatisticsTask(index=0, client=1, occasion="a refresh", **size)

    class Keeping:
        def add(self, result):
            found.append(result.statistics[0]["1"])

    for engine in (InProcess(model, clients), flower_grid.on_flower(model, clients, mods=[mod])):
        fold_answers(engine, {"theta": Layout.of(model).flatten(model)}, [task], Keeping())
    assert torch.equal(found[0].mean, found[1].mean)
    assert torch.equal(found[0].scatter, found[1].scatter)


def test_the_example_s_private_app_has_the_mod_on_training_alone(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
    from digits.private_client_app import app, node

    grid = flower_grid.InProcessGrid(app, 4)
    for context in grid.contexts.values():
        context.run_config.update(clients=4, output="", timeout=1.0)
    model = node(next(iter(grid.contexts.values()))).model
    theta = Layout.of(model).flatten(model)
    done = round_trip(Flower(grid, model, 4, patience=0), {"theta": theta}, tasks([2]), Snapshots())
    expected = 2 * math.sqrt(2 * math.log(1.25 / 1e-5))
    assert (done.fold.result() - theta).std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * len(theta)))
