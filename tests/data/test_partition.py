"""Partitions are seeded, disjoint covers of the examples, as skewed as their settings say."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.data.partition import (
    PARTITIONS,
    by_column,
    checked,
    dirichlet,
    iid,
    needed_settings,
    partition,
    quantity,
    shards,
)

SETTINGS = {
    "iid": {},
    "dirichlet": {"concentration": 1.0},
    "shards": {"shards_per_client": 2},
    "quantity": {"concentration": 0.5},
}
EACH = list(SETTINGS.items())
LIMIT_EQUAL, LIMIT_APART = 1e12, 1e-9


def sizes(parts):
    return [len(part) for part in parts]


def counts(parts, targets):
    return torch.stack([targets[part].bincount(minlength=int(targets.max()) + 1) for part in parts])


def test_every_partition_is_tested_here_with_the_settings_that_it_needs():
    assert {name: set(needed_settings(name)) for name in PARTITIONS} == {
        name: set(settings) for name, settings in SETTINGS.items()
    }


@pytest.mark.parametrize(("name", "settings"), EACH)
@given(data=st.data(), clients=st.integers(1, 20), share=st.integers(20, 30), seed=st.integers(0, 2**63 - 1))
def test_a_partition_is_a_disjoint_cover_with_enough_for_each_client(name, settings, data, clients, share, seed):
    """Whatever the labels; two examples of twenty are within reach of 100 draws with concentration 1."""
    labels = data.draw(st.lists(st.integers(-3, 8), min_size=clients * share, max_size=clients * share))
    least = data.draw(st.integers(1, 2 if name == "dirichlet" else 19))
    parts = partition(name, torch.tensor(labels), clients, seed, min_examples=least, **settings)
    assert len(parts) == clients
    assert min(sizes(parts)) >= least
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))


@given(n=st.integers(1, 300), data=st.data())
def test_iid_sizes_differ_by_at_most_one(n, data):
    found = sizes(iid(torch.zeros(n), data.draw(st.integers(1, n)), seed=0))
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize(("name", "settings"), EACH)
def test_a_partition_is_a_function_of_the_seed_and_leaves_the_global_generators_alone(name, settings):
    targets = torch.arange(1000) % 10
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (partition(name, targets, 7, seed, **settings) for seed in (3, 3, 4))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.parametrize("name", ["dirichlet", "shards"])
def test_targets_may_be_an_array_or_a_list(name):
    targets = torch.arange(60) % 3
    own = {"dirichlet": {"concentration": 1.0}, "shards": {"shards_per_client": 2}}[name]
    expected = partition(name, targets, 4, 0, **own)
    for form in (targets.numpy(), targets.tolist()):
        found = PARTITIONS[name](form, 4, 0, **own)
        assert all(torch.equal(*both) for both in zip(found, expected, strict=True))


def test_iid_mixes_sorted_targets():
    """10 clients x 1,000 examples of 10 equal classes: hypergeometric counts, mean 100, std 9; 6 std are allowed."""
    targets = torch.arange(10).repeat_interleave(1000)
    assert (counts(iid(targets, 10, seed=0), targets) - 100).abs().max() < 54


def test_dirichlet_tends_to_equal_shares_of_each_class():
    targets = torch.arange(5).repeat_interleave(400)
    assert (counts(dirichlet(targets, 10, seed=0, concentration=LIMIT_EQUAL), targets) - 40).abs().max() <= 1


def test_dirichlet_tends_to_classes_that_lie_on_one_client_each():
    targets = torch.arange(10).repeat_interleave(400)
    found = counts(dirichlet(targets, 3, seed=0, concentration=LIMIT_APART), targets)
    assert found.max(0).values.tolist() == [400] * 10


def assert_shares_are_dirichlet(shares, clients, concentration):
    """Mean 1/k and variance (k − 1)/(k²(kα + 1)) of a client's share, within 5 standard errors of the draws.

    The error of the variance is bounded by the fourth moment of values within 1 - 1/k of their mean.
    """
    variance = (clients - 1) / (clients**2 * (clients * concentration + 1))
    assert abs(shares.mean() - 1 / clients) < 5 * math.sqrt(variance / len(shares))
    deviation = math.sqrt(variance * (1 - 1 / clients) ** 2 / len(shares))
    assert abs(shares.var() - variance) < 5 * deviation


@pytest.mark.parametrize("concentration", [0.5, 3.0])
def test_dirichlet_s_shares_have_the_moments_of_the_distribution(concentration):
    """4,000 classes are as many draws; shares in steps of 1/100 add a variance of 2e-5, which is within tolerance."""
    targets = torch.arange(4000).repeat_interleave(100)
    parts = dirichlet(targets, 4, seed=0, concentration=concentration)
    assert_shares_are_dirichlet(counts(parts, targets)[1] / 100, 4, concentration)


@pytest.mark.parametrize("concentration", [0.5, 3.0])
def test_quantity_s_shares_have_the_moments_of_the_distribution(concentration):
    """Of what is left once everyone has the least; 2,000 draws by as many seeds."""
    targets = torch.zeros(440)
    draws = [quantity(targets, 4, seed, concentration=concentration, min_examples=10) for seed in range(2000)]
    shares = torch.tensor([(len(parts[1]) - 10) / 400 for parts in draws])
    assert_shares_are_dirichlet(shares, 4, concentration)


def test_quantity_tends_to_equal_sizes_and_to_one_client_with_all_but_the_least():
    targets = torch.zeros(100)
    assert sizes(quantity(targets, 8, seed=0, concentration=LIMIT_EQUAL)) == pytest.approx([12.5] * 8, abs=1)
    assert sorted(sizes(quantity(targets, 8, seed=0, concentration=LIMIT_APART, min_examples=3))) == [3] * 7 + [79]


def test_quantity_does_not_sort_by_target():
    """A random half of two equal classes: hypergeometric, std 16 of 500; 6 std are allowed."""
    targets = torch.arange(2).repeat_interleave(1000)
    parts = quantity(targets, 2, seed=0, concentration=LIMIT_EQUAL)
    assert (counts(parts, targets) - 500).abs().max() < 96


def test_shards_of_whole_labels_give_a_client_as_many_labels_at_most():
    """The split of McMahan et al. 2016, a tenth of it: 200 shards of 30 of ten classes, two for each client."""
    targets = torch.arange(10).repeat(600)
    parts = shards(targets, 100, seed=0, shards_per_client=2)
    assert sizes(parts) == [60] * 100
    labels = (counts(parts, targets) > 0).sum(1)
    assert set(labels.tolist()) == {1, 2}
    assert set(counts(parts, targets).unique().tolist()) == {0, 30, 60}


@given(clients=st.integers(1, 8), each=st.integers(1, 4), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_shards_no_larger_than_a_class_have_two_labels_at_most(clients, each, seed, data):
    """Classes of 33 examples, no more classes than shards; sizes from those of the smallest and the largest shard."""
    classes = data.draw(st.integers(1, min(6, clients * each)))
    targets = torch.arange(classes).repeat(33)
    parts = shards(targets, clients, seed, shards_per_client=each)
    assert (counts(parts, targets) > 0).sum(1).max() <= 2 * each
    assert min(sizes(parts)) >= each * (len(targets) // (clients * each))
    assert max(sizes(parts)) <= each * math.ceil(len(targets) / (clients * each))


def test_shards_sort_numbers_too():
    """Targets of a regression: one shard each of a hundred is a range of its own."""
    targets = torch.rand(100, generator=torch.Generator().manual_seed(0))
    ranges = sorted((targets[part].min(), targets[part].max()) for part in shards(targets, 4, 0, shards_per_client=1))
    assert all(high < low for (_, high), (low, _) in pairwise(ranges))


@pytest.mark.parametrize(
    ("clients", "least", "message"),
    [
        (0, 1, "clients must be at least 1, got 0"),
        (11, 1, "at least 1 example, got 11 clients for 10 examples: use fewer clients or more data"),
        (
            4,
            3,
            "at least 3 examples, got 4 clients for 10 examples: use fewer clients, lower min_examples or more data",
        ),
        (2, 0, "min_examples must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize(("name", "settings"), EACH)
def test_impossible_numbers_of_clients_are_refused(name, settings, clients, least, message):
    with pytest.raises(ValueError, match=message):
        partition(name, torch.zeros(10).long(), clients, seed=0, min_examples=least, **settings)


@pytest.mark.parametrize(
    ("name", "targets", "settings", "message"),
    [
        (
            "dirichlet",
            torch.zeros(9),
            {"concentration": 1},
            r"one class for each example, got float32 of shape \[",
        ),
        ("dirichlet", torch.zeros(9, 2).long(), {"concentration": 1}, r"got int64 of shape \[9, 2\]: use shards"),
        ("dirichlet", torch.zeros(9).long(), {"concentration": 0.0}, "must be positive and finite, got 0"),
        ("quantity", torch.zeros(9), {"concentration": math.inf}, "must be positive and finite, got inf"),
        ("quantity", torch.zeros(9), {"concentration": math.nan}, "must be positive and finite, got nan"),
        ("shards", torch.zeros(9, 2), {"shards_per_client": 1}, r"one target for each example, got shape \[9, 2\]"),
        ("shards", torch.zeros(9), {"shards_per_client": 0}, "shards_per_client must be at least 1, got 0"),
        ("shards", torch.zeros(9), {"shards_per_client": 4}, "9 examples for 3 clients of 4 shards, 0 or more in each"),
        (
            "shards",
            torch.zeros(9),
            {"shards_per_client": 2, "min_examples": 3},
            "at least 3 examples, got 9 .* of 2 shards, 1 or more in each: lower clients, shards_per_client or min_ex",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(name, targets, settings, message):
    with pytest.raises(ValueError, match=message):
        partition(name, targets, 3, seed=0, **settings)


def test_dirichlet_gives_up_with_the_best_that_it_drew_and_what_to_change():
    """Two classes that lie on one client each leave at least eight of ten clients with nothing."""
    with pytest.raises(
        ValueError,
        match=r"at least 5 examples, but the best of 100 draws with concentration 1e-09 leaves one of 10 clients "
        r"with 0: raise concentration, or lower clients or min_examples",
    ):
        dirichlet(torch.arange(100) % 2, 10, seed=0, concentration=LIMIT_APART, min_examples=5)


def test_dirichlet_draws_again_until_all_have_enough():
    """Three clients, two classes: most first draws leave somebody with less than a quarter of the examples."""
    targets = torch.arange(400) % 2
    first, enough = (
        [min(sizes(dirichlet(targets, 3, seed, concentration=0.5, min_examples=least))) for seed in range(20)]
        for least in (1, 100)
    )
    assert sum(fewest < 100 for fewest in first) > 10
    assert min(enough) >= 100


def test_an_unknown_partition_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"partition must be one of iid, dirichlet, shards, quantity, got 'idd'"):
        partition("idd", torch.zeros(10), 2, seed=0)


class Series:
    """A column of a data frame, as far as it matters here."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["b", "a", "b", "c"], {"a": [1], "b": [0, 2], "c": [3]}),
        ([10, 9, 10, -1], {-1: [3], 9: [1], 10: [0, 2]}),
        (np.array(["x10", "x9", "x10"]), {"x10": [0, 2], "x9": [1]}),
        (np.array([3, 1, 3], dtype=np.uint8), {1: [1], 3: [0, 2]}),
        (np.array([np.int64(3), 1], dtype=object), {1: [1], 3: [0]}),
        (torch.tensor([2, 0, 2]), {0: [1], 2: [0, 2]}),
        (Series(["b", "a"]), {"a": [1], "b": [0]}),
        (iter("ba"), {"a": [1], "b": [0]}),
    ],
)
def test_a_column_gives_each_client_its_rows_with_the_names_in_sorted_order(column, expected):
    parts = by_column(column)
    assert list(parts) == list(expected)
    assert {name: rows.tolist() for name, rows in parts.items()} == expected
    assert all(rows.dtype == torch.int64 for rows in parts.values())
    assert {type(name) for name in parts} <= {int, str}


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60))
def test_the_clients_of_a_column_are_a_partition(column):
    parts = by_column(column)
    assert [column[rows[0]] for rows in parts.values()] == sorted(set(column))
    assert all({column[row] for row in rows} == {name} for name, rows in parts.items())
    assert sum(sizes(checked(list(parts.values()), len(column)))) == len(column)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None], "must be a string or a whole number, got None for example 1"),
        ([1, 2.0], "got 2.0 for example 1"),
        ([0, True], "got True for example 1"),
        (np.array([1.0, math.nan]), "got 1.0 for example 0"),
        ([7, "a"], "all strings or all whole numbers, got 'a' and 7: convert the column"),
        ([], "the column is empty: it must name the client of each example"),
    ],
)
def test_a_column_that_does_not_name_clients_is_refused(column, message):
    with pytest.raises(ValueError, match=message):
        by_column(column)


def test_parts_of_one_s_own_come_back_as_indices():
    parts = checked([[3, 0], np.array([1], dtype=np.int32), torch.tensor([5], dtype=torch.uint8)], 6)
    assert [part.tolist() for part in parts] == [[3, 0], [1], [5]]
    assert {part.dtype for part in parts} == {torch.int64}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "a partition needs at least one client, got none"),
        ([[0], []], "client 1 has no example: give it one, or leave the client out"),
        ([[0, 1], [2, 1]], "example 1 is in clients 0 and 1: an example belongs to one client"),
        ([[0], [3, 2, 3]], "client 1 has example 3 more than once"),
        ([[0], [4]], "client 1 has example 4, expected 0 to 3 for 4 examples"),
        ([[-1]], "client 0 has example -1, expected 0 to 3"),
        ([[0.0, 1.0]], r"client 0 must have a list of whole numbers, .*, got torch.float32 of shape \[2\]"),
        ([[True, False]], r"got torch.bool of shape \[2\]"),
        ([[[0], [1]]], r"got torch.int64 of shape \[2, 1\]"),
    ],
)
def test_parts_that_break_a_rule_are_refused_with_client_and_example(parts, message):
    with pytest.raises(ValueError, match=message):
        checked(parts, 4)


# ----------------------------------------------------------------------------------------------- one α for each of many


def test_clients_get_shares_in_the_proportions_of_their_own_concentrations():
    targets = torch.arange(200).repeat_interleave(100)  # each class is a draw
    alphas = [6.0, 3.0, 1.0]
    shares = counts(dirichlet(targets, 3, seed=0, concentration=alphas), targets) / 100
    for share, alpha in zip(shares, alphas, strict=True):
        mean, variance = alpha / 10, alpha * (10 - alpha) / (100 * 11)  # of Dirichlet(6, 3, 1)
        # counts are rounded down by less than 1 of 100; 5 standard errors of 200 draws
        assert abs(share.mean() - mean) < 0.01 + 5 * (variance / 200) ** 0.5
        assert share.var() == pytest.approx(variance, rel=0.5)


def test_each_class_may_have_its_own_concentration():
    targets = torch.arange(2).repeat_interleave(1000)
    for concentration in (
        {0: LIMIT_EQUAL, 1: LIMIT_APART},
        [LIMIT_EQUAL, LIMIT_APART],
        np.array([LIMIT_EQUAL, LIMIT_APART]),
    ):
        found = counts(dirichlet(targets, 4, seed=0, concentration=concentration), targets)
        assert (found[:, 0] - 250).abs().max() <= 1
        assert sorted(found[:, 1].tolist()) == [0, 0, 0, 1000]


def test_equal_concentrations_are_one():
    targets = torch.arange(600) % 3
    one = dirichlet(targets, 4, seed=3, concentration=0.7)
    for concentration in ([0.7] * 4, [0.7] * 3, {0: 0.7, 1: 0.7, 2: 0.7}):
        assert all(map(torch.equal, one, dirichlet(targets, 4, seed=3, concentration=concentration)))


@pytest.mark.parametrize("form", [list, np.array, lambda names: np.array(names, dtype=object)])
def test_classes_may_have_names(form):
    numbers = [0, 1, 2, 1] * 50
    names = form([["cat", "dog", "owl"][number] for number in numbers])
    named = dirichlet(names, 3, seed=1, concentration=1.0)
    assert all(map(torch.equal, named, dirichlet(numbers, 3, seed=1, concentration=1.0)))
    alphas = {"cat": 0.5, "dog": 1.0, "owl": 2.0}
    own = dirichlet(names, 3, seed=1, concentration=alphas)
    assert all(map(torch.equal, own, dirichlet(numbers, 3, seed=1, concentration=dict(enumerate(alphas.values())))))


@pytest.mark.parametrize(
    ("concentration", "words"),
    [
        ([1.0, 2.0], "one number, or one for each of 4 clients or 3 classes, got 2"),
        ({0: 1.0, 2: 1.0}, r"one number for each class, but has none for \[1\]"),
        ([1.0, 1.0, 1.0, -0.5], "must be positive and finite"),
    ],
)
def test_concentrations_that_do_not_fit_are_refused(concentration, words):
    with pytest.raises(ValueError, match=words):
        dirichlet(torch.arange(60) % 3, 4, seed=0, concentration=concentration)
