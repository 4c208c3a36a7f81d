"""A replica's dropout draws the values that PyTorch's would draw from the task's generator."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dswag.client import work
from dswag.client.dropout import SeededDropout, seed_dropout
from dswag.client.replica import Workspace
from dswag.client.training import TrainTask
from dswag.core.parameters import Layout
from dswag.core.randomness import DrawFrom
from dswag.data.examples import Examples
from dswag.federation.local_update import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

TASK = TrainTask(
    index=0,
    client=0,
    occasion="a test",
    learning_rates=(0.1, 0.05),
    snapshots=(2,),
    seed=3,
    update=ClientUpdate(batch_size=8),
)


class Plain(nn.Module):
    """Dropout that goes through the dispatch mode."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, self.training)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_drops_what_pytorch_drops(p, dtype):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    layer = nn.Sequential(nn.Dropout(p))
    seed_dropout(layer).generator = ours
    with DrawFrom(theirs):
        expected = F.dropout(x, p)
    state = torch.get_rng_state()
    assert torch.equal(layer(x), expected)
    assert torch.equal(ours.get_state(), theirs.get_state()) or p == 1.0  # of which no draw depends
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("inplace", [False, True])
def test_training_with_it_gives_the_bits_of_the_dispatch_mode(inplace):
    generator = torch.Generator().manual_seed(0)
    data = Examples(torch.randn(30, 6, generator=generator), torch.arange(30) % 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4, inplace=inplace), nn.Tanh(), nn.Linear(8, 3))
    plain = nn.Sequential(model[0], Plain(0.4), model[2], model[3])
    thetas = []
    for each in (model, plain):
        workspace = Workspace(each)
        payload = {"theta": Layout.of(each).flatten(each)}
        thetas.append(work.run(replace(TASK), payload, data, workspace).thetas)
        assert workspace.draws_randomly == (each is plain)  # so that only the other pays for the mode
    assert torch.equal(*thetas)
    assert type(model[1]) is nn.Dropout  # the model given stays


def test_each_replica_draws_from_a_generator_of_its_own():
    first = Workspace(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    second = first.another()
    assert all(isinstance(each.module[1], SeededDropout) for each in (first, second))
    assert first.dropout is first.module[1].source is not second.dropout is second.module[1].source


def test_a_layer_of_one_s_own_stays_as_it_is():
    class Own(nn.Dropout):
        pass

    layer = nn.Sequential(Own())
    seed_dropout(layer)
    assert type(layer[0]) is Own
