"""Tempering against softmax of scaled log-probabilities, fitted temperatures against SciPy and known ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from dswag.core.randomness import generator_for
from dswag.evaluation.metrics import nll
from dswag.evaluation.temperature import HOTTEST, calibrated_nll, fit_temperature, temper


@given(seed=st.integers(0, 99), temperature=st.floats(0.2, 5))
def test_tempering_is_scaling_of_logits(seed, temperature):
    logits = 3 * torch.randn(7, 4, generator=generator_for(seed), dtype=torch.float64)
    torch.testing.assert_close(temper(logits.softmax(1), temperature), (logits / temperature).softmax(1))


def test_temperature_one_changes_no_bit():
    probabilities = torch.rand(5, 3, generator=generator_for(0)).softmax(1)
    assert torch.equal(temper(probabilities, 1.0), probabilities)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_certainty_stays_finite(temperature):
    tempered = temper(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), temperature)
    assert torch.isfinite(tempered).all()
    assert tempered.argmax(1).tolist() == [0, 1]


def overconfident(n, temperature, seed=0):
    """Classes drawn from softmax(logits), and the probabilities of logits times `temperature`."""
    logits = 2 * torch.randn(n, 4, generator=generator_for(seed), dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator_for(seed, 1)).flatten()
    return (temperature * logits).softmax(1), targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_has_the_least_nll(temperature):
    probabilities, targets = overconfident(500, temperature)
    fitted = fit_temperature(probabilities, targets)
    found = minimize_scalar(
        lambda log: nll(temper(probabilities, math.exp(log)), targets), bounds=(-2, 2), method="bounded"
    )
    assert fitted == pytest.approx(math.exp(found.x), rel=1e-3)  # SciPy stops at 1e-5 of a flat minimum


def test_the_fitted_temperature_undoes_overconfidence():
    """The maximum likelihood estimate at 20,000 examples; its standard error here is below 0.03."""
    probabilities, targets = overconfident(20_000, 3.0)
    assert fit_temperature(probabilities, targets) == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize(("target", "limit"), [(0, 1 / HOTTEST), (1, HOTTEST)])
def test_without_a_finite_best_temperature_it_stops_at_the_limit(target, limit):
    probabilities = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    assert fit_temperature(probabilities, torch.tensor([target])) == pytest.approx(limit, rel=1e-4)


def test_calibrated_nll_does_not_depend_on_the_temperature_that_was_there():
    """But for the fit's tolerance."""
    (sharp, targets), (soft, _) = overconfident(400, 3.0), overconfident(400, 0.7)
    assert calibrated_nll(sharp, targets) == pytest.approx(calibrated_nll(soft, targets), rel=1e-5)
    assert calibrated_nll(sharp, targets) < nll(sharp, targets)


def test_calibrated_nll_scores_each_half_with_the_temperature_of_the_other():
    probabilities, targets = overconfident(11, 2.0)
    order = torch.randperm(11, generator=generator_for(5, 0))
    first, second = order[:5], order[5:]
    total = 0.0
    for fitted, scored in ((first, second), (second, first)):
        temperature = fit_temperature(probabilities[fitted], targets[fitted])
        total += nll(temper(probabilities[scored], temperature), targets[scored]) * len(scored)
    assert calibrated_nll(probabilities, targets, seed=5, splits=1) == pytest.approx(total / 11, rel=1e-12)


def test_one_example_cannot_be_halved():
    with pytest.raises(ValueError, match="takes at least 2 examples, got 1"):
        calibrated_nll(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))


@pytest.mark.parametrize(("p", "words"), [(torch.full((2, 3), float("nan")), "free of NaN"), (torch.ones(0, 3), "one")])
def test_no_temperature_is_fitted_to_what_is_no_prediction(p, words):
    with pytest.raises(ValueError, match=words):
        fit_temperature(p, torch.zeros(len(p), dtype=torch.int64))
