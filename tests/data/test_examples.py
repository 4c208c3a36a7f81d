"""In whatever form a client's data come, a pass yields every example once, in an order that the generator decides."""

import itertools
import math
from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import dswag
from dswag.data.batches import without_labels
from dswag.data.examples import ClientData, Examples, LoaderExamples, client_data
from dswag.data.streams import Stream as Stream_

N = 10
INPUTS = torch.arange(N, dtype=torch.float32).view(N, 1) * 10
TARGETS = torch.arange(N)


class Pairs(Dataset):
    """A data set that gives its examples one by one."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return INPUTS[index], int(TARGETS[index])


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        return iter([(INPUTS[0], 0)])


FORMS = {
    "pair of tensors": lambda: (INPUTS, TARGETS),
    "pair of arrays": lambda: (INPUTS.numpy(), np.arange(N, dtype=np.uint8)),
    "Examples": lambda: Examples(INPUTS, TARGETS),
    "TensorDataset": lambda: TensorDataset(INPUTS, TARGETS),
    "Subset of a TensorDataset": lambda: Subset(
        TensorDataset(INPUTS.repeat(2, 1), TARGETS.repeat(2)), list(range(N, 2 * N))
    ),
    "Dataset": Pairs,
    "Subset of a Dataset": lambda: Subset(Pairs(), range(N)),
    "DataLoader": lambda: DataLoader(Pairs(), batch_size=4),
    "shuffling DataLoader": lambda: DataLoader(Pairs(), batch_size=4, shuffle=True),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def one_pass(data, **settings):
    inputs, targets = zip(*data.batches(4, **settings), strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize("form", FORMS)
def test_one_pass_without_a_generator_is_the_data_in_their_order(form):
    data = client_data(FORMS[form]())
    assert isinstance(data, ClientData)
    assert data.num_examples == N
    inputs, targets = one_pass(data)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(targets, TARGETS)
    assert targets.dtype == torch.int64


@pytest.mark.parametrize("form", FORMS)
def test_one_pass_with_a_generator_is_a_shuffle_that_the_seed_decides(form):
    data = client_data(FORMS[form]())
    first, again, other = (one_pass(data, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0].flatten(), first[1] * 10.0)
    assert torch.equal(first[1].sort().values, TARGETS)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [None, 0])
def test_a_pass_leaves_the_global_generator_alone(form, seed):
    data = client_data(FORMS[form]())
    before = torch.get_rng_state()
    one_pass(data, generator=None if seed is None else seeded(seed))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (10, 4), (10, 10), (10, 50), (33, 32), (1, 1), (7, 1)])
def test_batches_of_tensors_are_of_nearly_one_size_and_none_is_too_large(n, batch_size):
    data = Examples(torch.zeros(n, 2), torch.zeros(n))
    sizes = [len(targets) for _, targets in data.batches(batch_size, generator=seeded(0))]
    assert len(sizes) == math.ceil(n / batch_size)
    assert sum(sizes) == n
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (Pairs(), [4, 3, 3]),
        (DataLoader(Pairs(), batch_size=3), [3, 3, 2, 2]),
        (DataLoader(Pairs(), batch_size=9, shuffle=True), [5, 5]),
        (DataLoader(Pairs(), batch_size=3, sampler=SubsetRandomSampler(range(7))), [3, 2, 2]),
        (DataLoader(Pairs(), batch_size=3, drop_last=True), [3, 3, 3]),
        (DataLoader(Pairs(), batch_sampler=[[0], [1, 2, 3]]), [1, 3]),
        (DataLoader(Pairs(), batch_size=1), [1] * 10),
    ],
)
@pytest.mark.parametrize("seed", [None, 0])
def test_no_lone_example_is_left_over_unless_the_loader_says_so(data, sizes, seed):
    passed = client_data(data).batches(4, generator=None if seed is None else seeded(seed))
    assert [len(targets) for _, targets in passed] == sizes


EQUAL = {
    "Dataset": lambda size: Pairs(),
    "loader": lambda size: DataLoader(Pairs(), batch_size=size),
    "shuffling loader": lambda size: DataLoader(Pairs(), batch_size=size, shuffle=True),
    "loader with workers": lambda size: DataLoader(Pairs(), batch_size=size, num_workers=1),
}


@pytest.mark.parametrize("form", EQUAL)
@pytest.mark.parametrize("size", [3, 4])
def test_every_form_gives_the_batches_of_a_pair_of_tensors_and_leaves_the_generator_as_they_do(form, size):
    one, other = seeded(5), seeded(5)
    batches = list(Examples(INPUTS, TARGETS).batches(size, generator=one))
    found = list(client_data(EQUAL[form](size)).batches(size, generator=other))
    for (inputs, targets), (same_inputs, same_targets) in zip(batches, found, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("data", [Examples(INPUTS, TARGETS), LoaderExamples(Pairs())])
@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(data, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        list(data.batches(batch_size))


def test_augmentation_applies_to_training_passes_alone():
    data = Examples(INPUTS, TARGETS, augmentation=lambda batch, generator: batch + torch.rand(1, generator=generator))
    plain = one_pass(Examples(INPUTS, TARGETS), generator=seeded(0))[0]
    assert torch.equal(one_pass(data, generator=seeded(0))[0], plain)
    changed = [one_pass(data, generator=seeded(0), augment=True)[0] for _ in range(2)]
    assert torch.equal(*changed)
    assert (changed[0] != plain).all()
    assert torch.equal(one_pass(data, augment=True)[0], INPUTS)


def test_selected_examples_keep_their_augmentation():
    data = Examples(INPUTS, TARGETS.int(), augmentation=lambda batch, generator: batch)
    part = data[torch.tensor([3, 1])]
    assert part.targets.tolist() == [3, 1]
    assert part.inputs.flatten().tolist() == [30, 10]
    assert part.augmentation is data.augmentation
    assert len(data[2:5]) == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_whole_numbers_as_targets_become_int64_and_others_stay(dtype):
    assert Examples(INPUTS, torch.ones(N).to(dtype)).targets.dtype == torch.int64
    assert Examples(INPUTS, torch.ones(N, dtype=torch.float64)).targets.dtype == torch.float64
    assert Examples(INPUTS.byte(), TARGETS).inputs.dtype == torch.uint8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(N,), (N, 2), (N, 1, 3, 3)])
def test_values_that_are_not_finite_are_named_with_their_example(bad, shape):
    values = torch.zeros(shape)
    values.view(N, -1)[7, -1] = bad
    with pytest.raises(ValueError, match="inputs must be finite, got NaN or infinity in example 7"):
        Examples(values, TARGETS)
    with pytest.raises(ValueError, match="targets must be finite, got NaN or infinity in example 7"):
        Examples(INPUTS, values)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((INPUTS, TARGETS[:3]), ValueError, "must pair up, got 10 inputs, 3 targets"),
        ((INPUTS[:0], TARGETS[:0]), ValueError, "examples are empty"),
        (Subset(Pairs(), []), ValueError, "examples are empty"),
        (Stream(), TypeError, r"Stream has no length, .* give dswag\.data\.streams\.Stream\(\.\.\., steps_per_epoch"),
        (DataLoader(Stream()), TypeError, "Stream has no length"),
        ("mnist", TypeError, "pair of tensors .*, a Dataset or a DataLoader, got str"),
        (({"x": INPUTS}, TARGETS), TypeError, "inputs must be one tensor or array, got dict: .* give a Dataset"),
        (((INPUTS, INPUTS), TARGETS), TypeError, "inputs must be one tensor or array, got a tuple of 2"),
        ((INPUTS, ["cat"] * N), TypeError, "targets must be one tensor or array, got a list of 10"),
        ((INPUTS, TARGETS, TARGETS), TypeError, "pair of tensors .*, a Dataset or a DataLoader, got a tuple of 3"),
    ],
)
def test_what_is_no_client_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        client_data(data)


def test_batches_that_are_no_pairs_are_refused():
    with pytest.raises(TypeError, match=r"must be \(inputs, targets\), got a list of 3: .* a tuple or a dictionary"):
        list(client_data(TensorDataset(INPUTS, TARGETS, TARGETS)).batches(4))


def test_a_loader_that_drops_its_last_batch_counts_only_what_it_yields():
    data = client_data(DataLoader(Pairs(), batch_size=4, drop_last=True))
    assert data.num_examples == sum(len(targets) for _, targets in data.batches(4)) == 8
    with pytest.raises(
        ValueError, match="drops all of its 10 examples, fewer than its batch_size of 11, as it has drop"
    ):
        client_data(DataLoader(Pairs(), batch_size=11, drop_last=True))


@pytest.mark.parametrize(
    ("settings", "num_examples"),
    [
        ({"sampler": SubsetRandomSampler([1, 2, 3], generator=seeded(0))}, 3),
        ({"sampler": RandomSampler(Pairs(), replacement=True, num_samples=25, generator=seeded(0))}, 25),
        ({"sampler": RandomSampler(Pairs(), num_samples=6, generator=seeded(0))}, 6),
        ({"batch_sampler": [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]}, 10),
    ],
)
def test_a_loader_that_samples_in_its_own_way_is_iterated_as_it_is(settings, num_examples):
    data = client_data(DataLoader(Pairs(), generator=seeded(0), **settings))
    assert data.num_examples == num_examples
    assert sum(len(targets) for _, targets in data.batches(4, generator=seeded(0))) == num_examples


def test_a_shuffling_loader_keeps_its_other_settings():
    def collate(examples):
        return torch.stack([inputs for inputs, _ in examples]) + 1, torch.tensor([target for _, target in examples])

    inputs, targets = one_pass(
        client_data(DataLoader(Pairs(), batch_size=5, shuffle=True, collate_fn=collate)), generator=seeded(0)
    )
    assert torch.equal(inputs.flatten(), targets * 10.0 + 1)


def test_data_of_the_user_own_form_are_taken_as_they_are():
    class Own:
        num_examples = 3

        def batches(self, batch_size, *, generator=None, augment=False):
            yield {"a": torch.zeros(3)}, torch.zeros(3)

    own = Own()
    assert client_data(own) is own


class Noisy(Dataset):
    """Adds noise from the global generator, as transforms do."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([float(index)]) + torch.rand(1), index % 2


@pytest.mark.parametrize("data", [Noisy(), DataLoader(Noisy(), batch_size=5, shuffle=True)])
def test_what_a_data_set_draws_is_decided_by_the_seed(data):
    state = torch.get_rng_state()
    one, again, other = (
        torch.cat([x for x, _ in client_data(data).batches(4, generator=torch.Generator().manual_seed(seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one.sort(0).values, other.sort(0).values)
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------------ named batches


class Rows(Dataset):
    """Examples as Hugging Face's data sets have them."""

    def __init__(self, name="label"):
        self.name = name

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"x": INPUTS[index], self.name: int(TARGETS[index])}


class RowsOfAnotherLibrary:
    """Not a Dataset of PyTorch's, but like one."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return Rows()[index]


class Encoding(UserDict):
    """Like the batches of Hugging Face's tokenizers."""


def encoded(rows):
    return Encoding(x=torch.stack([row["x"] for row in rows]), labels=torch.tensor([row["label"] for row in rows]))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (Rows("label"), dict),
        (Rows("labels"), dict),
        (RowsOfAnotherLibrary(), dict),
        (DataLoader(Rows(), batch_size=4, collate_fn=encoded), Encoding),
    ],
)
def test_labels_may_lie_within_a_batch(data, kind):
    batches = list(client_data(data).batches(4))
    assert all(type(inputs) is kind and list(inputs) == ["x"] for inputs, _ in batches)
    assert torch.equal(torch.cat([inputs["x"] for inputs, _ in batches]), INPUTS)
    assert torch.equal(torch.cat([targets for _, targets in batches]), TARGETS)


def test_taking_the_labels_out_leaves_the_batch_as_it_was():
    batch = Encoding(x=1, labels=2)
    assert dict(without_labels(batch)) == {"x": 1}
    assert dict(batch) == {"x": 1, "labels": 2}
    assert dict(without_labels(MappingProxyType(dict(batch)))) == {"x": 1}
    assert without_labels({"x": 1}) == {"x": 1}


def test_a_mapping_without_labels_is_refused_by_its_names():
    with pytest.raises(TypeError, match=r"must hold its targets as 'labels', got \['x', 'y'\]"):
        list(client_data(Rows("y")).batches(4))


# ------------------------------------------------------------------------------------------------------------ streams


class Endless(IterableDataset):
    def __init__(self, length=None):
        self.length = length

    def __iter__(self):
        numbers = itertools.count() if self.length is None else range(self.length)
        return ((torch.tensor([float(i)]), i % 2) for i in numbers)


def numbers(stream):
    return [inputs.flatten().tolist() for inputs, _ in stream.batches(99)]


@pytest.mark.parametrize(
    "source", [Endless(), DataLoader(Endless(), batch_size=2), [([0.0], [0]), ([1.0], [1]), ([2.0], [0])]]
)
def test_an_epoch_of_a_stream_is_its_next_batches(source):
    stream = Stream_(source, steps_per_epoch=2, batch_size=2)
    if isinstance(source, list):
        assert [batch for batch, _ in stream.batches(1)] == [[0.0], [1.0]]
        assert [batch for batch, _ in stream.batches(1)] == [[2.0], [0.0]]  # begins anew
        return
    assert numbers(stream) == [[0, 1], [2, 3]]
    assert numbers(stream) == [[4, 5], [6, 7]]
    assert stream.num_examples == 4


def test_a_stream_that_ends_begins_anew_and_an_empty_one_is_refused():
    assert numbers(Stream_(Endless(3), steps_per_epoch=3, batch_size=2)) == [[0, 1], [2], [0, 1]]
    with pytest.raises(ValueError, match="the stream yields no batch: give one that can be iterated anew"):
        numbers(Stream_(iter([]), steps_per_epoch=1))
    with pytest.raises(ValueError, match="steps_per_epoch and batch_size must be at least 1, got 0 and 50"):
        Stream_([], steps_per_epoch=0)


def test_clients_may_be_streams():
    streams = [Stream_(Endless(), steps_per_epoch=3, batch_size=2) for _ in range(2)]
    run = dswag.train(torch.nn.Linear(1, 2), streams, rounds=2, learning_rate=1e-4, max_loss_growth=1e9)
    assert len(run.history) == 2


def test_whatever_form_the_data_have_dropout_and_all_trains_to_the_same_bits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 10))
    config = dswag.Config(
        clients=2,
        rounds=2,
        batch_size=3,
        learning_rate=1e-3,
        max_loss_growth=1e9,
    )
    forms = [
        (INPUTS, TARGETS),
        Pairs(),
        DataLoader(Pairs(), batch_size=3),
        DataLoader(Pairs(), batch_size=3, shuffle=True, num_workers=1),
    ]
    thetas = [dswag.train(model, [form] * 2, config).theta for form in forms]
    assert all(torch.equal(thetas[0], theta) for theta in thetas[1:])
