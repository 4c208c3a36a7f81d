"""A client's examples of a second data set have the label mix of its examples of the first."""

import numpy as np
import pytest
import torch

from dswag.core.randomness import generator_for
from dswag.data.applied import applied
from dswag.data.partition import dirichlet, iid, shards


def classes(n, seed, c=5):
    return torch.randint(c, (n,), generator=generator_for(seed))


@pytest.mark.parametrize(
    "split",
    [
        lambda y: iid(y, clients=7, seed=0),
        lambda y: dirichlet(y, clients=7, seed=0, concentration=0.3),
        lambda y: shards(y, clients=7, seed=0, shards_per_client=2),
    ],
)
def test_every_client_has_its_share_of_each_class_to_the_example(split):
    y, other = classes(2000, 1), classes(700, 2)
    parts = split(y)
    found = applied(parts, y, other, seed=3)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(700))
    counts = np.stack([y[part].bincount(minlength=5).numpy() for part in parts])
    theirs = np.stack([other[rows].bincount(minlength=5).numpy() for rows in found])
    exact = counts / counts.sum(0) * other.bincount(minlength=5).numpy()
    assert np.abs(theirs - exact).max() < 1


def test_which_examples_a_client_has_is_drawn_from_the_seed():
    y, other = classes(200, 1), classes(300, 2)
    parts = iid(y, clients=3, seed=0)
    one, again, another = (applied(parts, y, other, seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again))
    assert not all(map(torch.equal, one, another))


def test_classes_that_no_client_has_are_left_out():
    parts = [torch.tensor([0, 1]), torch.tensor([2])]
    found = applied(parts, torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1, 2, 7]), seed=0)
    assert [rows.tolist() for rows in found] == [[0], [2]]


def test_what_cannot_be_applied_is_refused():
    with pytest.raises(ValueError, match="at least one client"):
        applied([], torch.zeros(3).long(), torch.zeros(3).long(), seed=0)
    with pytest.raises(ValueError, match=r"others must be classes from 0 in one axis, got torch.float32 \[3\]"):
        applied([torch.arange(3)], torch.zeros(3).long(), torch.zeros(3), seed=0)
