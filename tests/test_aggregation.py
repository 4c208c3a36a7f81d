"""The mean of client weights against NumPy in float64."""

from copy import deepcopy
from fractions import Fraction
from itertools import pairwise
from math import ulp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dswag.aggregation import AGGREGATIONS, Mean
from dswag.tasks import TrainResult

WEIGHTED = {"mean": False, "weighted-mean": True}
each_rule = pytest.mark.parametrize("rule", WEIGHTED)


def make_results(count, d=40, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return [
        TrainResult(
            index=index,
            client=index + 3,
            thetas=torch.from_numpy((spread * rng.standard_normal((2, d))).astype(np.float32)),
            num_examples=int(rng.integers(1, 500)),
            loss=float(rng.random()),
        )
        for index in range(count)
    ]


def folded(rule, results, d=40):
    fold = AGGREGATIONS[rule](torch.zeros(d))
    for result in results:
        fold.add(result)
    return fold


def numpy_mean(rule, results):
    thetas = np.stack([result.thetas[-1].numpy() for result in results]).astype(np.float64)
    return np.average(thetas, axis=0, weights=[r.num_examples for r in results] if WEIGHTED[rule] else None)


def within_half_a_unit(actual, expected):
    """Whether float32 values are the float64 ones correctly rounded, up to float64's own error in the middle."""
    unit = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return np.all(np.abs(actual.double().numpy() - expected) <= (0.5 + 1e-6) * unit)


@each_rule
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_mean_equals_numpy_to_half_a_unit_in_the_last_place(rule, count):
    results = make_results(count)
    assert within_half_a_unit(folded(rule, results).result().theta, numpy_mean(rule, results))


@each_rule
def test_mean_keeps_its_digits_where_large_weights_cancel(rule):
    # The sum of a million and minus a million leaves about 0.1: float32 sums or differences would be off by 1e-2.
    anchor = torch.full((40,), 0.1)
    large = make_results(20, spread=1e6)
    results = [
        TrainResult(index=0, client=0, thetas=sign * r.thetas + 0.1 * k, num_examples=r.num_examples, loss=0.0)
        for r in large
        for k, sign in enumerate((1, -1))
    ]
    fold = AGGREGATIONS[rule](anchor)
    for result in results:
        fold.add(result)
    assert within_half_a_unit(fold.result().theta, numpy_mean(rule, results))


@each_rule
def test_mean_of_equal_clients_is_each_of_them_bit_for_bit(rule):
    (result,) = make_results(1)
    assert torch.equal(folded(rule, [result] * 7).result().theta, result.thetas[-1])


@each_rule
def test_mean_does_not_depend_on_the_anchor(rule):
    results = make_results(5)
    one, other = AGGREGATIONS[rule](torch.zeros(40)), AGGREGATIONS[rule](torch.full((40,), 1e6))
    for result in results:
        one.add(result)
        other.add(result)
    assert torch.equal(one.result().theta, other.result().theta)


@each_rule
@settings(max_examples=40)
@given(order=st.permutations(range(9)), cuts=st.sets(st.integers(1, 8)), right_first=st.booleans())
def test_mean_does_not_depend_on_client_order_or_grouping(rule, order, cuts, right_first):
    results = make_results(9)
    edges = [0, *sorted(cuts), 9]
    parts = [folded(rule, [results[i] for i in order[a:b]]) for a, b in pairwise(edges)]
    while len(parts) > 1:  # a chain of merges from either end
        a, b = (parts.pop(-2), parts.pop()) if right_first else (parts.pop(0), parts.pop(0))
        a.merge(b)
        parts.insert(len(parts) if right_first else 0, a)
    aggregate = parts[0].result()
    assert within_half_a_unit(aggregate.theta, numpy_mean(rule, results))
    assert aggregate.num_clients == 9
    assert aggregate.num_examples == sum(r.num_examples for r in results)


def test_weights_are_the_numbers_of_examples():
    thetas = [torch.tensor([[1.0]]), torch.tensor([[5.0]])]
    results = [
        TrainResult(index=i, client=i, thetas=theta, num_examples=n, loss=loss)
        for i, (theta, n, loss) in enumerate(zip(thetas, (3, 1), (0.2, 0.6), strict=True))
    ]
    assert folded("mean", results, 1).result().theta.tolist() == [3.0]
    assert folded("weighted-mean", results, 1).result().theta.tolist() == [2.0]


@each_rule
def test_loss_is_the_mean_over_examples_under_both_rules(rule):
    results = make_results(6)
    examples = sum(r.num_examples for r in results)
    expected = sum(Fraction(r.loss) * r.num_examples for r in results) / examples
    loss = folded(rule, results).result().loss
    assert abs(loss - float(expected)) <= 8 * ulp(1.0)  # 6 products and sums below 1 after the division


def test_the_last_snapshot_counts():
    result = TrainResult(index=0, client=0, thetas=torch.tensor([[9.0], [2.0]]), num_examples=1, loss=0.0)
    assert folded("mean", [result], 1).result().theta.tolist() == [2.0]


@each_rule
def test_result_may_be_asked_at_any_time_and_changes_nothing(rule):
    results = make_results(4)
    fold = folded(rule, results[:2])
    early = fold.result()
    assert torch.equal(early.theta, fold.result().theta)
    for result in results[2:]:
        fold.add(result)
    assert torch.equal(fold.result().theta, folded(rule, results).result().theta)
    assert torch.equal(early.theta, folded(rule, results[:2]).result().theta)  # what was handed out stays as it was


@each_rule
def test_results_merged_folds_and_anchor_are_read_only(rule):
    results, anchor = make_results(4), torch.ones(40)
    before = deepcopy([r.thetas for r in results])
    fold, other = AGGREGATIONS[rule](anchor), folded(rule, results[2:])
    others = other.result().theta
    for result in results[:2]:
        fold.add(result)
    fold.merge(other)
    fold.result()
    assert all(torch.equal(r.thetas, b) for r, b in zip(results, before, strict=True))
    assert torch.equal(anchor, torch.ones(40))
    assert torch.equal(other.result().theta, others)


@each_rule
def test_a_fold_does_not_hold_on_to_results(rule):
    result = make_results(1)[0]
    fold = folded(rule, [result])
    expected = fold.result().theta
    result.thetas.zero_()
    assert torch.equal(fold.result().theta, expected)


def test_an_empty_fold_merges_as_nothing():
    fold = folded("mean", make_results(3))
    expected = fold.result().theta
    fold.merge(Mean(torch.zeros(40)))
    assert torch.equal(fold.result().theta, expected)


@each_rule
def test_the_mean_of_no_clients_is_refused(rule):
    with pytest.raises(ValueError, match="no mean of no clients: add a result first"):
        AGGREGATIONS[rule](torch.zeros(3)).result()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_has_the_dtype_of_theta(dtype):
    fold = Mean(torch.zeros(2, dtype=dtype))
    thetas = torch.tensor([[1.0, 2.0]], dtype=dtype)
    fold.add(TrainResult(index=0, client=0, thetas=thetas, num_examples=1, loss=0.0))
    assert fold.result().theta.dtype == dtype
