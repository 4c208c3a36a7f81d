"""Class-wise and smooth calibration errors against slow loops, and the error that chance alone gives."""

import math

import pytest
import torch

from dswag.evaluation.calibration_errors import chance_error, classwise_calibration_error, smooth_calibration_error
from dswag.evaluation.reliability import expected_calibration_error


def sampled(n, *, sharpness=1.0, c=4, seed=0):
    """Targets drawn from the softmax of logits; probabilities are calibrated at a sharpness of 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    targets = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    return (sharpness * logits).softmax(1), targets


@pytest.mark.parametrize("binning", ["equal-mass", "equal-width"])
def test_the_classwise_error_equals_a_slow_loop(binning):
    probabilities, targets = sampled(60)
    total = 0.0
    for number in range(4):
        pairs = sorted(zip(probabilities[:, number].tolist(), (targets == number).tolist(), strict=True))
        bins = [[] for _ in range(5)]
        for rank, (p, hit) in enumerate(pairs):
            bins[min(int(p * 5), 4) if binning == "equal-width" else rank * 5 // 60].append(p - hit)
        total += sum(abs(sum(gaps)) for gaps in bins) / 60
    assert classwise_calibration_error(probabilities, targets, bins=5, binning=binning) == pytest.approx(total / 4)


def slow_smooth_error(probabilities, targets, points=2001):
    """By bisection over widths, with the kernel's reflections written out."""
    confidence, predicted = probabilities.max(1)
    residual = (predicted == targets).double() - confidence
    t = torch.linspace(0, 1, points, dtype=torch.float64)

    def smoothed(width):
        images = [sign * confidence + 2 * m for sign in (1, -1) for m in (-1, 0, 1)]
        kernel = sum(torch.exp(-((t[:, None] - image) ** 2) / (2 * width**2)) for image in images)
        heights = (kernel @ residual / len(residual) / (math.sqrt(2 * math.pi) * width)).abs()
        return float(torch.trapezoid(heights, t))

    low, high = 0.005, 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
    return low


@pytest.mark.parametrize("sharpness", [0.6, 1.0, 1.7])
def test_the_smooth_error_equals_one_with_all_kernels_written_out(sharpness):
    predictions = sampled(300, sharpness=sharpness)
    assert smooth_calibration_error(*predictions) == pytest.approx(slow_smooth_error(*predictions), abs=2e-5)


def test_the_smooth_error_equals_that_of_its_authors():
    """By smECE of relplot 1.0.3 for the same predictions: it searches in steps of 1/1024, 5e-4 to each side."""
    theirs = 0.07523780715916582
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(3000, 5, generator=generator, dtype=torch.float64)
    targets = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    assert smooth_calibration_error((1.3 * logits).softmax(1), targets) == pytest.approx(theirs, abs=5e-4)


def test_a_single_wrong_prediction_of_confidence_one_has_the_largest_smooth_error():
    """The whole mass, 1, sits at one end; smoothed over a width of 1 it is still 1."""
    assert smooth_calibration_error([[1.0, 0.0]], [1]) == pytest.approx(1, abs=1e-5)
    assert smooth_calibration_error([[1.0, 0.0]], [0]) < 1e-5


def test_the_binned_error_of_a_calibrated_model_is_what_chance_says():
    """The mean over 200 sets of 500 examples, within 5 of its standard errors; and it falls as 1/√n."""
    found = torch.tensor([expected_calibration_error(*sampled(500, seed=seed), bins=10) for seed in range(200)])
    expected = sum(chance_error(sampled(500, seed=seed)[0], bins=10) for seed in range(200)) / 200
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / math.sqrt(200))
    many = chance_error(sampled(50_000)[0], bins=10)
    assert many == pytest.approx(expected / 10, rel=0.05)
    assert expected > 0.02  # a calibrated model looks wrong by two percent


def test_the_smooth_error_of_a_calibrated_model_falls_below_the_binned_one():
    predictions = sampled(2000)
    assert smooth_calibration_error(*predictions) < expected_calibration_error(*predictions, bins=100)
