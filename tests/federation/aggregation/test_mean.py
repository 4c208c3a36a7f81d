"""The mean of client weights against NumPy in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import training_results
from hypothesis import given, settings
from hypothesis import strategies as st
from training_results import make_results

from dswag.federation.aggregation import aggregator
from dswag.federation.client_results import TrainResult

WEIGHTED = {"mean": False, "weighted-mean": True}
each_rule = pytest.mark.parametrize("rule", WEIGHTED)


def folded(rule, results, d=40):
    return training_results.folded(aggregator(rule, torch.zeros(d)), results)


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
    fold = aggregator(rule, anchor)
    for result in results:
        fold.add(result)
    assert within_half_a_unit(fold.result().theta, numpy_mean(rule, results))


@each_rule
def test_mean_does_not_depend_on_the_anchor(rule):
    results = make_results(5)
    one, other = aggregator(rule, torch.zeros(40)), aggregator(rule, torch.full((40,), 1e6))
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
