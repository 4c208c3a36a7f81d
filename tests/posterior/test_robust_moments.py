"""Robust moments: closed forms, Gaussian data, slow loops, and clients that lie."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranges import in_ranges, spread_copy
from training_results import folded

from dswag.core.parameters import Layout
from dswag.core.randomness import generator_for
from dswag.federation.client_results import TrainResult
from dswag.posterior.moments import Moments
from dswag.posterior.robust_moments import RobustMoments, consistency, location_and_scatter

each_estimator = pytest.mark.parametrize("estimator", ["trimmed", "median"])


def results_of(thetas):
    """A result for each client of thetas [n, s, d]."""
    return [
        TrainResult(index=index, client=index, thetas=rows, num_examples=9, loss=0.5)
        for index, rows in enumerate(thetas)
    ]


def random_thetas(n, s=1, d=30, seed=0, anchor=0.0, between=1.0, within=0.5):
    generator = generator_for(seed)
    means = between * torch.randn(n, 1, d, generator=generator)
    return anchor + means + within * torch.randn(n, s, d, generator=generator) * (s > 1)


def collected(thetas, estimator, byzantine=2, **settings):
    anchor = settings.pop("anchor", torch.zeros_like(thetas[0, 0]))
    return folded(RobustMoments(anchor, estimator, byzantine=byzantine, **settings), results_of(thetas)).posterior()


# -------------------------------------------------------------------------------------------------------- estimators


def slow_location_and_scatter(estimator, values, cut):
    """One coordinate, as the definitions in the class's docstring say."""
    ordered = sorted(values)
    kept = ordered[cut : len(values) - cut]
    location = sum(kept) / len(kept)
    if estimator == "trimmed":
        winsorized = [min(max(value, kept[0]), kept[-1]) for value in ordered]
        center = sum(winsorized) / len(values)
        return location, sum((value - center) ** 2 for value in winsorized) / len(values)
    deviations = sorted(abs(value - location) for value in values)
    return location, (sum(deviations[cut : len(values) - cut]) / len(kept)) ** 2


@each_estimator
@pytest.mark.parametrize("n", [4, 5, 10, 31])
def test_location_and_scatter_are_those_of_a_slow_loop_and_of_scipy(estimator, n):
    values = torch.randn(n, 6, generator=generator_for(n), dtype=torch.float64) * 3 + 1
    cut = n // 5 if estimator == "trimmed" else (n - 1) // 2
    location, scatter = location_and_scatter(estimator, values.clone(), cut)
    for column in range(6):
        expected = slow_location_and_scatter(estimator, values[:, column].tolist(), cut)
        assert (float(location[column]), float(scatter[column])) == pytest.approx(expected, rel=1e-12)
    if estimator == "median":
        deviation = scipy.stats.median_abs_deviation(values.numpy(), axis=0)
        np.testing.assert_allclose(scatter.sqrt().numpy(), deviation, rtol=1e-12)
    else:
        winsorized = scipy.stats.mstats.winsorize(values.numpy(), (cut / n, cut / n), axis=0)
        np.testing.assert_allclose(scatter.numpy(), np.asarray(winsorized).var(0), rtol=1e-12)


def test_consistency_goes_to_the_known_factors_for_many_clients():
    n = 2001  # the bias left is of order 1/n, the simulation's error about 0.2 %
    assert consistency("median", n, 1000) == pytest.approx(1.4826**2, rel=0.005)
    alpha = 400 / n
    q = scipy.stats.norm.ppf(1 - alpha)
    winsorized = 1 - 2 * alpha - 2 * q * scipy.stats.norm.pdf(q) + 2 * alpha * q**2
    assert consistency("trimmed", n, 400) == pytest.approx(1 / winsorized, rel=0.005)


@each_estimator
@pytest.mark.parametrize(("n", "s"), [(6, 1), (10, 1), (10, 3), (25, 2)])
def test_on_gaussian_clients_the_variance_is_that_of_plain_moments_on_average(estimator, n, s):
    d = 40_000
    thetas = random_thetas(n, s, d, seed=n + s)
    robust = collected(thetas, estimator, 1, rank=0)
    within = 0.25 * (s > 1)
    expected = (1 + within / s) * (n - 1) / n + within * (s - 1) / s  # between: that of the clients' means
    error = float(robust.variance.std()) / math.sqrt(d)
    assert abs(float(robust.variance.mean()) - expected) <= 5 * error + 0.004 * expected  # and the factors' own error
    plain = folded(Moments(torch.zeros(d), rank=0), results_of(thetas)).posterior()
    assert float(plain.variance.mean()) == pytest.approx(expected, rel=0.02)
    if s > 1:
        error = float(robust.variance_within.std()) / math.sqrt(d)
        assert abs(float(robust.variance_within.mean()) - within * (s - 1) / s) <= 5 * error + 0.001
    else:
        assert robust.variance_within is None


@each_estimator
def test_without_consistency_the_variance_of_ten_clients_would_be_far_too_small(estimator):
    values = torch.randn(10, 40_000, generator=generator_for(3), dtype=torch.float64)
    _, scatter = location_and_scatter(estimator, values, 2 if estimator == "trimmed" else 4)
    assert float(scatter.mean()) < 0.5


@each_estimator
def test_the_mean_is_the_robust_location_of_the_clients_means(estimator):
    thetas = random_thetas(9, 3)
    means = thetas.double().mean(1).numpy()
    expected = np.median(means, 0) if estimator == "median" else scipy.stats.trim_mean(means, 2 / 9 + 1e-9, axis=0)
    np.testing.assert_allclose(collected(thetas, estimator).mean.numpy(), expected, rtol=2e-7, atol=1e-7)


@each_estimator
def test_small_spreads_around_large_weights_keep_their_digits(estimator):
    steps = random_thetas(10).double()
    far = (1 + 1e-5 * steps).float()
    expected = collected(((far.double() - 1) * 1e5), estimator, anchor=torch.zeros(30, dtype=torch.float64))
    found = collected(far, estimator, anchor=torch.ones(30))
    torch.testing.assert_close(found.variance.double() * 1e10, expected.variance, rtol=1e-6, atol=0)


# ----------------------------------------------------------------------------------------------------------- columns


@each_estimator
def test_columns_are_whole_deviations_of_the_clients_near_the_center(estimator):
    thetas = random_thetas(8, 2)
    thetas[[1, 5]] += 30.0  # far: dropped
    posterior = collected(thetas, estimator)
    near = [0, 2, 3, 4, 6, 7]
    expected = (thetas[near] - posterior.mean).flatten(0, 1)
    torch.testing.assert_close(posterior.deviations, expected, rtol=0, atol=1e-6)
    inner = (thetas[near] - thetas[near].mean(1, keepdim=True)).flatten(0, 1)
    torch.testing.assert_close(posterior.deviations_within, inner, rtol=0, atol=1e-6)


def test_columns_are_the_last_of_those_that_are_left():
    thetas = random_thetas(8)
    thetas[7] += 30.0
    posterior = collected(thetas, "median", 1, rank=3)
    torch.testing.assert_close(posterior.deviations, thetas[[4, 5, 6], 0] - posterior.mean, rtol=0, atol=1e-6)


def test_without_rank_there_are_no_columns():
    assert collected(random_thetas(8), "trimmed", rank=0).deviations.shape == (0, 30)


# ----------------------------------------------------------------------------------------------------------- folding


@each_estimator
@settings(max_examples=15)
@given(order=st.permutations(range(9)), cuts=st.sets(st.integers(1, 8)))
def test_posterior_does_not_depend_on_the_order_of_arrival_or_on_merging(estimator, order, cuts):
    results = results_of(random_thetas(9, 2))
    expected = folded(RobustMoments(torch.zeros(30), estimator, byzantine=2), results).posterior()
    parts = [
        folded(RobustMoments(torch.zeros(30), estimator, byzantine=2), [results[i] for i in order[a:b]])
        for a, b in pairwise([0, *sorted(cuts), 9])
    ]
    for part in parts[1:]:
        parts[0].merge(part)
    for name, tensor in parts[0].result().tensors().items():
        assert torch.equal(tensor, expected.tensors()[name])


@each_estimator
def test_moments_cross_to_another_process_and_go_on_there(estimator):
    results, layout = results_of(random_thetas(9, 2)), Layout(("w",), ((30,),))
    here = folded(RobustMoments(torch.ones(30), estimator, byzantine="20%", rank=4, layout=layout), results[:5])
    there = here.empty()
    there.load(here.state())
    one, other = (folded(fold, results[5:]).posterior() for fold in (here, there))
    assert one.layout == other.layout == layout
    assert one.count == other.count == 18
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@each_estimator
@pytest.mark.parametrize(("s", "rank"), [(1, 4), (2, 20), (2, 0)])
def test_processes_that_hold_a_range_of_the_coordinates_each_agree_with_one_that_holds_all(estimator, s, rank):
    thetas = random_thetas(9, s)
    thetas[4] *= 20
    fold = folded(RobustMoments(torch.ones(30), estimator, byzantine=2, rank=rank), results_of(thetas))
    expected = fold.posterior().tensors()
    for posterior in in_ranges((0, 11, 30), lambda coordinates: spread_copy(fold, coordinates).posterior()):
        assert posterior.tensors().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in posterior.tensors().items())


@each_estimator
def test_too_few_clients_are_refused(estimator):
    with pytest.raises(ValueError, match=f"{estimator} needs at least 6 clients where 2 may be malicious, got 5"):
        collected(random_thetas(5), estimator)
    collected(random_thetas(6), estimator)


def test_clients_with_different_numbers_of_snapshots_are_refused():
    moments = folded(RobustMoments(torch.zeros(30), "median", byzantine=1), results_of(random_thetas(5)))
    moments.add(TrainResult(index=9, client=9, thetas=torch.zeros(2, 30), num_examples=1, loss=0.0))
    with pytest.raises(ValueError, match=r"median moments need the same number of snapshots .* got \[1, 2\]"):
        moments.posterior()


# --------------------------------------------------------------------------------------------------------- attackers


@each_estimator
@settings(max_examples=30)
@given(
    scale=st.integers(-2, 12),
    kind=st.sampled_from(["noise", "together", "spread", "on one"]),
    s=st.sampled_from([1, 2]),
)
def test_liars_move_location_scale_and_columns_no_further_than_the_honest_reach(estimator, scale, kind, s):
    honest = random_thetas(8, s)
    noise = 10.0**scale * torch.randn(2, s, 30, generator=generator_for(5))
    lies = {
        "noise": noise,
        "together": noise[:1].expand(2, -1, -1),
        "spread": noise * torch.tensor([1.0, -1.0])[:s, None],  # of one client: a mean near zero, snapshots far apart
        "on one": honest[:1].expand(2, -1, -1),
    }
    posterior = collected(torch.cat([honest, lies[kind]]), estimator)
    means = honest.mean(1)
    low, high = means.min(0).values, means.max(0).values
    assert (posterior.mean >= low).all()
    assert (posterior.mean <= high).all()
    largest = (high - low).square() * consistency(estimator, 10, 2 if estimator == "trimmed" else 4)
    inner = honest.var(1, correction=0).max(0).values * 4 if s > 1 else torch.zeros(30)  # a factor of 4 is generous
    assert (posterior.variance <= largest + inner).all()
    assert (posterior.variance > 0).all()
    furthest = (honest - posterior.mean).square().sum((1, 2)).max()
    assert posterior.deviations.square().sum(1).max() <= furthest * (1 + 1e-6)


def test_a_single_liar_ruins_plain_moments():
    thetas = random_thetas(10)
    thetas[0] = 1e6
    posterior = folded(Moments(torch.zeros(30)), results_of(thetas)).posterior()
    assert posterior.mean.min() > 9e4
    assert posterior.variance.min() > 1e10


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="estimator must be one of trimmed, median, got 'mode'"):
        RobustMoments(torch.zeros(3), "mode", byzantine=1)
