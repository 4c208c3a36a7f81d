"""Held-out examples are a disjoint, seeded part of a client's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from dswag.data.examples import Examples, LoaderExamples
from dswag.data.holdout import split


def numbered(n):
    return Examples(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n))


class Numbers(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index


def targets(data):
    return torch.cat([batch for _, batch in data.batches(3)]).tolist()


@given(n=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_the_parts_are_a_disjoint_cover_and_neither_is_empty(n, fraction, seed):
    rest, held_out = split(numbered(n), fraction, seed)
    assert sorted(targets(rest) + targets(held_out)) == list(range(n))
    assert abs(held_out.num_examples - fraction * n) <= 1


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (split(numbered(50), 0.2, seed)[1] for seed in (1, 1, 2))
    assert targets(first) == targets(again) != targets(other)


def test_a_data_set_is_divided_as_tensors_are():
    rest, held_out = split(LoaderExamples(Numbers()), 0.3, 0)
    assert (rest.num_examples, held_out.num_examples) == (7, 3)
    assert targets(held_out) == targets(split(numbered(10), 0.3, 0)[1])


def test_augmentation_stays_with_the_rest():
    data = Examples(torch.zeros(4, 1), torch.zeros(4), augmentation=lambda x, _: x + 1)
    assert all(part.augmentation is not None for part in split(data, 0.5, 0))


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="takes at least 2 of them, got 1: set holdout=0"):
        split(numbered(1), 0.1, 0)
    with pytest.raises(TypeError, match="cannot be held out of LoaderExamples: give the client's data as tensors"):
        split(LoaderExamples(Numbers(), DataLoader(Numbers(), batch_size=2)), 0.1, 0)
