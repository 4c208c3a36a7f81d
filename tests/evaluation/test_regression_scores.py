"""Scores of Gaussian predictions against scipy, numerical integrals and simulated targets."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from dswag.evaluation.regression import LEVELS, coverage, crps, nll, score

MEAN = np.array([0.0, 1.5, -2.0, 0.3])
VARIANCE = np.array([1.0, 0.25, 4.0, 0.01])
TARGETS = np.array([0.7, 1.4, -6.0, 0.9])


def test_scores_equal_scipy_and_the_integral_that_defines_crps():
    std = np.sqrt(VARIANCE)
    assert nll(MEAN, VARIANCE, TARGETS) == pytest.approx(-norm.logpdf(TARGETS, MEAN, std).mean())

    def integral(m, s, y):
        below = quad(lambda x: norm.cdf(x, m, s) ** 2, m - 12 * s, y, points=[m] if m < y else None)[0]
        return below + quad(lambda x: norm.sf(x, m, s) ** 2, y, m + 12 * s, points=[m] if m > y else None)[0]

    integrals = [integral(*example) for example in zip(MEAN, std, TARGETS, strict=True)]
    assert crps(MEAN, VARIANCE, TARGETS) == pytest.approx(np.mean(integrals), rel=1e-6)
    scores = score(torch.tensor(MEAN), VARIANCE, TARGETS.tolist())
    assert scores.nll == nll(MEAN, VARIANCE, TARGETS)
    assert scores.crps == crps(MEAN, VARIANCE, TARGETS)
    assert scores.rmse == pytest.approx(np.sqrt(np.mean((MEAN - TARGETS) ** 2)))
    assert scores.coverage_90 == 0.5  # |z| is 0.7, 0.2, 2, 6 against 1.64
    assert scores.num_examples == 4


def test_the_crps_of_a_certain_prediction_is_its_absolute_error():
    assert crps([1.0, 2.0], [0.0, 0.0], [1.5, 1.0]) == 0.75


def test_targets_drawn_from_the_predictions_are_covered_as_often_as_each_level_says():
    """Within 5 standard errors of a share of 40,000; and half the standard deviation covers too few, as scipy says."""
    generator = torch.Generator().manual_seed(0)
    mean, variance = (torch.rand(20_000, 2, generator=generator) for _ in range(2))
    targets = mean + variance.sqrt() * torch.randn(20_000, 2, generator=generator)
    error = 5 * math.sqrt(0.25 / 40_000)
    assert coverage(mean, variance, targets) == pytest.approx(LEVELS, abs=error)
    narrow = [2 * norm.cdf(norm.ppf((1 + level) / 2) / 2) - 1 for level in LEVELS]
    assert coverage(mean, variance / 4, targets) == pytest.approx(narrow, abs=error)


@pytest.mark.parametrize(
    ("mean", "variance", "targets", "message"),
    [
        (MEAN, VARIANCE, TARGETS[:, None], r"one shape, got mean \[4\], variance \[4\], targets \[4, 1\]"),
        (MEAN, -VARIANCE, TARGETS, "variance must not be negative, got -4"),
        (MEAN * np.nan, VARIANCE, TARGETS, "mean must be finite, got nan"),
        (MEAN, VARIANCE * 0, TARGETS, "a variance of 0 has no density: pass noise"),
        ([], [], [], "nothing to score"),
    ],
)
def test_bad_predictions_are_refused(mean, variance, targets, message):
    with pytest.raises(ValueError, match=message):
        score(mean, variance, targets)


def test_levels_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"levels must lie between 0 and 1, got \[1.0\]"):
        coverage(MEAN, VARIANCE, TARGETS, [1.0])
