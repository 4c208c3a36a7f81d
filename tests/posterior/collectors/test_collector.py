"""When snapshots are due, what they are of, and what is said where the library is missing; needs no trainer."""

import importlib
import sys

import pytest
import torch
from torch import nn

from dswag.core.parameters import Layout
from dswag.posterior.collectors.collector import SnapshotCollector
from dswag.posterior.moments import Moments


class Numbers(SnapshotCollector):
    """Notes the numbers at which a snapshot was taken."""

    def take(self, name, numbers):
        taken = []
        self._take = lambda module: taken.append(number)
        for number in numbers:
            getattr(self, name)(None, number)
        return taken


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"every_n_epochs": 3}, [3, 6]),
        ({"every_n_epochs": 2, "start": 3}, [5, 7]),
        ({"start": 6}, [7]),
        ({"start": 7}, []),
        ({"every_n_steps": 2}, []),
    ],
)
def test_snapshots_are_due_every_so_many_epochs_after_the_start(settings, expected):
    assert Numbers(**settings).take("epoch_ended", range(1, 8)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_n_steps": 1}, [1, 2, 3, 4]),
        ({"every_n_steps": 2}, [2, 4]),
        ({"every_n_steps": 2, "start": 1}, [3]),
        ({}, []),
    ],
)
def test_a_step_of_several_batches_counts_once(settings, expected):
    assert Numbers(**settings).take("step_ended", [0, 1, 1, 2, 2, 3, 3, 4, 4]) == expected


@pytest.mark.parametrize(("name", "value"), [("every_n_epochs", 0), ("every_n_steps", 0), ("start", -1)])
def test_numbers_that_cannot_be_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        SnapshotCollector(**{name: value})


def test_snapshots_are_of_the_trainable_weights_unless_the_moments_have_a_layout():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].weight.requires_grad_(False)
    collector, of_bias = SnapshotCollector(), SnapshotCollector(Moments(rank=0, layout=Layout(("1.bias",), ((1,),))))
    for epoch in range(3):
        nn.init.constant_(module[1].bias, float(epoch))
        collector.epoch_ended(module, epoch + 1)
        of_bias.epoch_ended(module, epoch + 1)
    assert collector.posterior.layout == Layout.of(module)
    assert of_bias.posterior.mean.tolist() == [1.0]
    assert of_bias.posterior.variance.tolist() == [pytest.approx(2 / 3)]


def test_one_snapshot_is_no_posterior():
    collector = SnapshotCollector()
    collector.epoch_ended(nn.Linear(1, 1), 1)
    with pytest.raises(ValueError, match="a posterior needs at least 2 snapshots, got 1"):
        _ = collector.posterior


@pytest.mark.parametrize("device", ["cpu", torch.device("meta")])
def test_moments_are_where_they_are_wanted(device):
    collector = SnapshotCollector(device=device)
    assert collector.device == torch.device(device)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_library_says_how_to_get_it(name, monkeypatch):
    for module in (name, "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"dswag.posterior.collectors.{name}", raising=False)
    remedy = rf"collectors\.{name} needs {name}: pip install 'dswag\[{name}\]'"
    with pytest.raises(ImportError, match=remedy):
        importlib.import_module(f"dswag.posterior.collectors.{name}")
