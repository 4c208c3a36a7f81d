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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_n_steps": 3}, [4, 8, 12]),
        ({"every_n_steps": 2, "start": 5}, [8, 10, 12]),
        ({"every_n_steps": 1}, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_steps_are_counted_from_snapshot_to_snapshot_where_numbers_are_left_out(settings, expected):
    """As where two optimizers make the number go by 2."""
    assert Numbers(**settings).take("step_ended", range(2, 14, 2)) == expected


def test_a_training_that_is_resumed_goes_on_where_it_would_have_been():
    collector, resumed = (Numbers(every_n_steps=4, start=2) for _ in range(2))
    resumed.training_begins(nn.Linear(1, 1), 8)
    assert collector.take("step_ended", range(1, 20)) == [6, 10, 14, 18]
    assert resumed.take("step_ended", range(9, 20)) == [10, 14, 18]


def test_two_trainings_are_not_mixed():
    collector, module = SnapshotCollector(), nn.Linear(2, 1)
    for first in (0, 5):  # it may go on where it ended
        collector.training_begins(module, first)
        for step in range(first + 1, first + 6):
            collector.step_ended(module, step)
        collector.epoch_ended(module, 1)
    with pytest.raises(
        ValueError, match=r"2 snapshots of a training that ended after step 10, and this one begins aft"
    ):
        collector.training_begins(module, 0)


def test_a_training_without_snapshots_is_no_training():
    collector, module = SnapshotCollector(start=3), nn.Linear(2, 1)
    collector.training_begins(module, 0)
    collector.step_ended(module, 1)
    collector.epoch_ended(module, 1)
    collector.training_begins(module, 0)


@pytest.mark.parametrize("unfreeze", [True, False])
def test_layers_that_are_frozen_or_unfrozen_after_the_first_snapshot_are_an_error_at_the_next(unfreeze):
    module = nn.Sequential(nn.Linear(4, 4).requires_grad_(not unfreeze), nn.Linear(4, 2))
    collector, moments = SnapshotCollector(), Moments()
    for adding in (collector.epoch_ended, lambda module, _: moments.add(module)):
        module[0].requires_grad_(not unfreeze)
        adding(module, 1)
        module[0].requires_grad_(unfreeze)
        words = "0.weight was not" if unfreeze else "0.weight was trainable then"
        with pytest.raises(ValueError, match=rf"snapshot 1 must have the trainable .* of the first: {words}; begin"):
            adding(module, 2)
    assert collector.moments.count == moments.count == 1
    given = Moments(layout=Layout.of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))))
    module.requires_grad_(False)
    given.add(module)


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
