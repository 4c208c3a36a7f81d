"""Partitions are seeded, disjoint covers of the examples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.data.partition import PARTITIONS, iid, partition


@pytest.mark.parametrize("name", PARTITIONS)
@given(n=st.integers(1, 300), data=st.data())
def test_a_partition_is_a_disjoint_cover_without_empty_clients(name, n, data):
    clients = data.draw(st.integers(1, n))
    parts = partition(name, torch.arange(n) % 10, clients, data.draw(st.integers(0, 2**63 - 1)))
    assert len(parts) == clients
    assert min(len(part) for part in parts) > 0
    assert torch.cat(parts).sort().values.tolist() == list(range(n))


@given(n=st.integers(1, 300), data=st.data())
def test_iid_sizes_differ_by_at_most_one(n, data):
    sizes = [len(part) for part in iid(torch.zeros(n), data.draw(st.integers(1, n)), seed=0)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_partition_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(name):
    targets = torch.arange(1000) % 10
    before = torch.get_rng_state()
    first, again, other = (partition(name, targets, 7, seed) for seed in (3, 3, 4))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_iid_mixes_sorted_targets():
    """10 clients x 1,000 examples of 10 equal classes: hypergeometric counts, mean 100, std 9; 6 std are allowed."""
    targets = torch.arange(10).repeat_interleave(1000)
    counts = torch.stack([targets[part].bincount(minlength=10) for part in iid(targets, 10, seed=0)])
    assert (counts - 100).abs().max() < 54


@pytest.mark.parametrize(
    ("clients", "message"), [(0, "at least 1, got 0"), (11, "got 11 clients for 10 examples: use fewer clients")]
)
@pytest.mark.parametrize("name", PARTITIONS)
def test_impossible_numbers_of_clients_are_refused(name, clients, message):
    with pytest.raises(ValueError, match=message):
        partition(name, torch.zeros(10), clients, seed=0)


def test_an_unknown_partition_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"partition must be one of iid.*, got 'idd'"):
        partition("idd", torch.zeros(10), 2, seed=0)
