"""Each robust rule against a slow float64 loop, another library or a closed form; clipped updates too."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_results import folded, results_of

from dswag.core.randomness import generator_for
from dswag.federation.aggregation import Mean, aggregator


def random_rows(n, d=7, seed=0):
    """Rows that lie in no special way, of different sizes."""
    rows = torch.randn(n, d, generator=generator_for(seed))
    return rows * torch.linspace(0.2, 3, n)[:, None] + 0.5


def outcome(rule, rows, byzantine=1, anchor=None):
    anchor = torch.zeros_like(rows[0]) if anchor is None else anchor
    return folded(aggregator(rule, anchor, byzantine=byzantine), results_of(rows)).result().theta.double().numpy()


@pytest.mark.parametrize("n", [3, 4, 9, 10, 50, 51])
def test_median_is_numpy_s_for_odd_and_even_numbers(n):
    rows = random_rows(n)
    expected = np.median(rows.double().numpy(), axis=0).astype(np.float32)
    assert np.array_equal(outcome("median", rows), expected)


@pytest.mark.parametrize(("n", "cut"), [(3, 1), (4, 1), (9, 4), (10, 2), (50, 10), (50, 24)])
def test_trimmed_mean_is_scipy_s(n, cut):
    rows = random_rows(n)
    expected = scipy.stats.trim_mean(rows.double().numpy(), cut / n + 1e-9, axis=0)
    np.testing.assert_allclose(outcome("trimmed-mean", rows, cut), expected, rtol=2e-7)  # rounded to float32


def slow_krum_order(rows, f):
    """The rows' numbers by their scores, from Section 4 of Blanchard et al. 2017."""
    n = len(rows)
    scores = []
    for i in range(n):
        others = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(others[: n - f - 2]))
    return sorted(range(n), key=lambda i: scores[i])


@pytest.mark.parametrize(("n", "f"), [(7, 1), (7, 2), (10, 2), (25, 11)])
def test_krum_and_multi_krum_are_those_of_a_slow_loop(n, f):
    rows = random_rows(n)
    order = slow_krum_order(rows.double().numpy(), f)
    assert np.array_equal(outcome("krum", rows, f), rows[order[0]].double().numpy())
    expected = np.mean([rows[i].double().numpy() for i in order[: n - f]], axis=0)
    np.testing.assert_allclose(outcome("multi-krum", rows, f), expected, rtol=2e-7)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_geometric_median_minimizes_the_sum_of_distances(n):
    rows = random_rows(n)
    points = rows.double().numpy()

    def cost(z):
        return np.linalg.norm(points - z, axis=1).sum()

    best = scipy.optimize.minimize(cost, points.mean(0), method="BFGS", options={"gtol": 1e-9})
    found = outcome("geometric-median", rows)
    assert cost(found) <= best.fun * (1 + 1e-7)
    radius = np.linalg.norm(points - best.x, axis=1).max()
    np.testing.assert_allclose(found, best.x, atol=2e-4 * radius)  # twice the smoothing


CLOSED_FORMS = {
    "a triangle of equal sides: its center": ([[0, 0], [2, 0], [1, 3**0.5]], [1, 3**-0.5]),
    "a triangle with a corner of more than 120 degrees: that corner": ([[-5, 0], [5, 0], [0, 1]], [0, 1]),
    "a convex quadrilateral: where its diagonals cross": ([[-3, 0], [1, 0], [0, -2], [0, 7]], [0, 0]),
    "points on a line: the one in the middle": ([[0, 0], [1, 1], [2, 2], [10, 10], [-30, -30]], [1, 1]),
    "most points in one place: that place": ([[4, 4], [4, 4], [4, 4], [0, 1], [9, 2]], [4, 4]),
}


@pytest.mark.parametrize("form", CLOSED_FORMS)
def test_geometric_median_where_its_place_is_known(form):
    points, place = CLOSED_FORMS[form]
    found = outcome("geometric-median", torch.tensor(points, dtype=torch.float64))
    np.testing.assert_allclose(found, place, atol=2e-3)  # smoothing of 1e-4 of a radius of up to 10


@pytest.mark.parametrize(
    ("places", "expected"),
    [((0, 1, 2, 3), 1.5), ((-7, 0, 1, 8), 0.5), ((0, 0, 0, 1, 1, 1), 0.5), ((-1e9, 0, 1, 1e9), 0.5)],
)
def test_where_every_point_between_two_rows_is_a_median_it_is_the_middle(places, expected):
    step = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    for order in (places, places[::-1]):
        found = outcome("geometric-median", torch.tensor(order, dtype=torch.float64)[:, None] * step)
        np.testing.assert_allclose(found / step.numpy(), expected, atol=1e-6)


@given(rows=st.lists(st.floats(-5, 5), min_size=3, max_size=12, unique=True))
def test_the_geometric_median_of_numbers_is_their_median(rows):
    """Of an even number some point between the middle two, to the smoothing."""
    ordered = sorted(rows)
    low, high = ordered[(len(rows) - 1) // 2], ordered[len(rows) // 2]
    slack = 3e-4 * (ordered[-1] - ordered[0])
    (found,) = outcome("geometric-median", torch.tensor(rows, dtype=torch.float64)[:, None])
    assert low - slack <= found <= high + slack


@pytest.mark.parametrize("base", ["median", "trimmed-mean", "krum", "geometric-median"])
@pytest.mark.parametrize(("n", "f"), [(7, 1), (11, 3)])
def test_mixing_gives_the_rule_the_mean_of_each_row_s_nearest(base, n, f):
    rows = random_rows(n)
    points = rows.double().numpy()
    mixed = []
    for point in points:
        nearest = np.argsort(np.linalg.norm(points - point, axis=1), kind="stable")[: n - f]
        mixed.append(points[nearest].mean(0))
    expected = outcome(base, torch.tensor(np.array(mixed)).float(), f)
    np.testing.assert_allclose(outcome(f"nnm-{base}", rows, f), expected, rtol=1e-5, atol=1e-6)


def test_far_rows_cost_the_others_no_digits():
    # Distances of about 1e-3 beside norms of 1e6: inner products around any but the anchor would cancel.
    anchor = 100 * torch.randn(500, generator=generator_for(9), dtype=torch.float64)
    near = anchor + 1e-3 * torch.randn(9, 500, generator=generator_for(10), dtype=torch.float64)
    far = anchor + 1e6 * torch.randn(2, 500, generator=generator_for(11), dtype=torch.float64)
    rows = torch.cat([far, near])
    order = [i for i in slow_krum_order(rows.numpy(), 2) if i > 1]
    assert np.array_equal(outcome("krum", rows, 2, anchor), rows[order[0]].numpy())
    median = outcome("geometric-median", rows, 2, anchor)
    assert np.linalg.norm(median - near.mean(0).numpy()) < 1e-3 * 500**0.5  # the radius of the near ones


# ----------------------------------------------------------------------------------------------------------- clipping


def test_an_update_that_is_too_long_keeps_its_direction():
    anchor = torch.tensor([1.0, -2.0, 0.5])
    update = torch.tensor([3.0, 4.0, 12.0])  # of norm 13
    fold = folded(Mean(anchor, clip_update=6.5), results_of([anchor + update]))
    torch.testing.assert_close(fold.result().theta, anchor + update / 2, rtol=2e-7, atol=0)


def test_an_update_that_is_short_enough_stays_bit_for_bit():
    anchor = torch.randn(30, generator=generator_for(0))
    row = anchor + 0.1
    fold = folded(Mean(anchor, clip_update=0.1 * 30**0.5 * 1.001), results_of([row]))
    assert torch.equal(fold.result().theta, row)


def test_updates_are_clipped_one_by_one_before_the_rule():
    anchor, rows = torch.ones(7), random_rows(9)
    updates = rows - anchor
    clipped = updates * (2 / updates.norm(dim=1, keepdim=True)).clamp(max=1)
    expected = (anchor + clipped).median(0).values
    fold = folded(aggregator("median", anchor, byzantine=2, clip_update=2.0), results_of(rows))
    torch.testing.assert_close(fold.result().theta, expected, rtol=2e-6, atol=1e-6)
    assert (updates.norm(dim=1) > 2).any()
    assert (updates.norm(dim=1) < 2).any()


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"aggregation must be one of mean, weighted-mean, median, .*, got 'trimmed'"):
        aggregator("trimmed", torch.zeros(3))
