"""The bootstrap against its closed form for means, SciPy, and intervals whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from dswag.core.randomness import generator_for
from dswag.evaluation.bootstrap import Interval, interval, mean_interval, reliability_band
from dswag.evaluation.reliability import reliability

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def test_interval_of_a_mean_is_that_of_the_central_limit_theorem():
    """A mean of 4,000 values is normal; a percentile of 2,000 replicates has a standard error of 0.06 sd at 2.5 %."""
    values = torch.rand(4000, generator=generator_for(0), dtype=torch.float64)
    found = mean_interval(values, seed=1, resamples=2000)
    sd = float(values.std(correction=0)) / 4000**0.5
    assert found.estimate == pytest.approx(float(values.mean()), abs=1e-12)
    assert (found.estimate - found.low) / sd == pytest.approx(1.96, abs=5 * 0.06)
    assert (found.high - found.estimate) / sd == pytest.approx(1.96, abs=5 * 0.06)


def test_interval_agrees_with_scipy_for_a_statistic_that_is_no_mean():
    values = torch.rand(60, generator=generator_for(2), dtype=torch.float64).square()
    found = interval(lambda rows: float(values[rows].median()), 60, seed=3, resamples=4000, level=0.9)
    theirs = stats.bootstrap(
        (values.numpy(),),
        lambda sample, axis: torch.from_numpy(sample).median(axis).values.numpy(),
        n_resamples=4000,
        confidence_level=0.9,
        method="percentile",
        rng=4,
    ).confidence_interval
    # both are values of the sample, at most one or two places apart
    ordered = values.sort().values.tolist()
    for ours, other in ((found.low, theirs.low), (found.high, theirs.high)):
        assert abs(ordered.index(min(ordered, key=lambda v: abs(v - ours))) - ordered.index(other)) <= 1


@pytest.mark.parametrize("skew", [1, 4])
def test_the_bca_interval_of_the_same_resamples_is_that_of_scipy(skew):
    """Efron's corrections, on replicates that SciPy is given: skewed values, and a statistic that is biased."""
    values = torch.rand(50, generator=generator_for(7), dtype=torch.float64) ** skew

    def spread(rows):
        return float(values[rows].std(correction=0))

    replicates = []

    def recorded(rows):
        replicates.append(spread(rows))
        return replicates[-1]

    found = interval(recorded, 50, seed=3, resamples=500, level=0.9, method="bca")
    theirs = stats.bootstrap(
        (values.numpy(),),
        lambda sample, axis: sample.std(axis),
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=np.array(replicates[:500])),
        confidence_level=0.9,
        method="BCa",
    ).confidence_interval
    plain = interval(spread, 50, seed=3, resamples=500, level=0.9)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    assert (found.low, found.high) != pytest.approx((plain.low, plain.high), rel=1e-3)


def test_the_bca_interval_of_values_that_do_not_vary_is_a_point():
    found = mean_interval(torch.ones(10), seed=0, resamples=50, method="bca")
    assert (found.low, found.high) == (1, 1)
    with pytest.raises(ValueError, match="method must be one of percentile, bca, got 'basic'"):
        mean_interval(torch.ones(10), seed=0, method="basic")


def test_pairing_sees_a_difference_that_two_intervals_hide():
    """Losses that vary by 1 from example to example, and a method that is 0.01 better on each of them."""
    theirs = torch.rand(500, generator=generator_for(5), dtype=torch.float64)
    ours = theirs - 0.01
    paired = mean_interval(ours - theirs, seed=0)
    assert paired.low == pytest.approx(-0.01)
    assert paired.high == pytest.approx(-0.01)
    assert mean_interval(ours, seed=0).high > mean_interval(theirs, seed=0).low


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """95 % of 200 intervals: 190, with a standard deviation of 3.1; with 80 values percentiles fall a little short."""
    hits = 0
    for trial in range(200):
        sample = torch.randn(80, generator=generator_for(6, trial), dtype=torch.float64)
        found = mean_interval(sample, seed=trial, resamples=200)
        hits += found.low <= 0 <= found.high
    assert 176 <= hits <= 200


def test_the_seed_decides_the_interval():
    values = torch.rand(50, generator=generator_for(7))
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


def calibrated_predictions(n, seed):
    """Two classes with confidences from 0.5 to 1, each right as often as it says."""
    draws = torch.rand(n, 2, generator=generator_for(seed), dtype=torch.float64)
    confidence = 0.5 + draws[:, 0] / 2
    targets = (draws[:, 1] > confidence).long()
    return torch.stack([confidence, 1 - confidence], 1), targets


def test_a_band_around_calibrated_predictions_holds_zero_in_most_bins():
    """Each of 20 bins holds zero with about 95 %: fewer than 15 have a probability of 3e-4."""
    probabilities, targets = calibrated_predictions(4000, 0)
    band = reliability_band(probabilities, targets, seed=0, resamples=200)
    assert band.curve == reliability(probabilities, targets)
    assert sum(low <= 0 <= high for low, high in zip(band.low, band.high, strict=True)) >= 15
    assert all(low <= gap <= high for low, gap, high in zip(band.low, band.curve.gap, band.high, strict=True))


def test_a_band_has_the_width_of_the_binomial():
    """In one bin the gap is mean confidence - accuracy, whose standard error has a closed form."""
    probabilities, targets = calibrated_predictions(3000, 1)
    band = reliability_band(probabilities, targets, bins=1, seed=0, resamples=1000)
    confidence, predicted = probabilities.max(1)
    error = float((confidence - (predicted == targets).double()).std(correction=0)) / 3000**0.5
    assert (band.high[0] - band.low[0]) / error == pytest.approx(2 * 1.96, rel=0.12)  # 5 standard errors


def test_bins_that_a_resample_empties_are_refused():
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]])
    with pytest.raises(ValueError, match="a resample fills 1 of 2 bins: use equal-mass or fewer bins"):
        reliability_band(probabilities, torch.tensor([0, 0]), bins=2, binning="equal-width", seed=0, resamples=1000)


def test_nothing_cannot_be_resampled():
    with pytest.raises(ValueError, match="nothing to resample: give at least one example"):
        mean_interval(torch.zeros(0), seed=0)
    assert mean_interval(torch.ones(1), seed=0) == Interval(1.0, 1.0, 1.0)
