"""Scores against scikit-learn and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from dswag.evaluation.metrics import accuracy, brier, nll, score
from dswag.evaluation.reliability import expected_calibration_error


def softmax_predictions(n, c, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits.softmax(1).to(dtype), torch.randint(c, (n,), generator=generator)


@pytest.mark.parametrize("c", [2, 3, 10])
def test_scores_equal_scikit_learn(c):
    probabilities, targets = softmax_predictions(500, c, seed=c)
    classes = np.arange(c)
    assert accuracy(probabilities, targets) == accuracy_score(targets, probabilities.argmax(1))
    assert nll(probabilities, targets) == pytest.approx(log_loss(targets, probabilities.numpy(), labels=classes))
    assert brier(probabilities, targets) == pytest.approx(
        brier_score_loss(targets, probabilities.numpy(), labels=classes, scale_by_half=False)
    )


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float16, 9.70), (torch.bfloat16, 87.34), (torch.float32, 87.34), (torch.float64, 708.40)],
)
def test_probability_zero_gives_the_largest_finite_nll_of_the_dtype(dtype, most):
    wrong, right = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[0.0, 1.0]], dtype=dtype)
    assert nll(wrong, torch.tensor([1])) == pytest.approx(most, abs=0.005)
    assert nll(torch.cat([wrong, right]), torch.tensor([1, 1])) == pytest.approx(most / 2, abs=0.005)


def test_a_subnormal_probability_counts_as_the_smallest_normal_one():
    probabilities = torch.tensor([[1.0, 1e-40]])
    assert nll(probabilities, torch.tensor([1])) == nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))


def test_a_probability_rounded_above_one_gives_nll_zero():
    assert nll(torch.tensor([[1.0 + 1e-6, 0.0]]), torch.tensor([0])) == 0


def test_brier_runs_from_zero_to_two():
    certain = torch.eye(3)
    assert brier(certain, torch.tensor([0, 1, 2])) == 0
    assert brier(certain, torch.tensor([1, 2, 0])) == 2
    assert brier(torch.full((1, 4), 0.25), torch.tensor([2])) == pytest.approx(1 - 1 / 4)


def test_of_tied_classes_the_first_is_predicted():
    probabilities = torch.tensor([[0.0, 0.5, 0.5]] * 2)
    assert accuracy(probabilities, torch.tensor([1, 2])) == 0.5


def test_scores_leave_the_probabilities_as_they_were():
    probabilities, targets = softmax_predictions(20, 3, seed=0, dtype=torch.float32)
    before = probabilities.clone()
    score(probabilities, targets)
    assert torch.equal(probabilities, before)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_lower_precision_moves_a_score_by_its_rounding_only(dtype, relative):
    probabilities, targets = softmax_predictions(300, 10, seed=5)
    assert nll(probabilities.to(dtype), targets) == pytest.approx(nll(probabilities, targets), rel=relative)
    assert brier(probabilities.to(dtype), targets) == pytest.approx(brier(probabilities, targets), rel=relative)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 30), c=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_scores_stay_in_their_ranges_and_permuting_classes_changes_none(n, c, seed):
    probabilities, targets = softmax_predictions(n, c, seed)
    scores = score(probabilities, targets, bins=5)
    assert 0 <= scores.accuracy <= 1
    assert 0 <= scores.nll < math.inf
    assert 0 <= scores.brier <= 2 + 1e-12
    renamed = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    permuted = score(probabilities[:, renamed], renamed.argsort()[targets], bins=5)
    assert permuted.accuracy == scores.accuracy
    assert permuted.nll == scores.nll
    assert permuted.brier == pytest.approx(scores.brier, abs=1e-12)
    assert permuted.ece_equal_mass == pytest.approx(scores.ece_equal_mass, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 12), copies=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_repeating_every_example_changes_no_mean_score(n, copies, seed):
    probabilities, targets = softmax_predictions(n, 3, seed)
    repeated = probabilities.repeat(copies, 1), targets.repeat(copies)
    assert accuracy(*repeated) == pytest.approx(accuracy(probabilities, targets))
    assert nll(*repeated) == pytest.approx(nll(probabilities, targets))
    assert brier(*repeated) == pytest.approx(brier(probabilities, targets))


def test_score_holds_each_score_under_its_name():
    probabilities, targets = softmax_predictions(200, 4, seed=9)
    scores = score(probabilities, targets, bins=7)
    assert scores.accuracy == accuracy(probabilities, targets)
    assert scores.nll == nll(probabilities, targets)
    assert scores.brier == brier(probabilities, targets)
    assert scores.ece_equal_mass == expected_calibration_error(probabilities, targets, bins=7, binning="equal-mass")
    assert scores.ece_equal_width == expected_calibration_error(probabilities, targets, bins=7, binning="equal-width")
    assert scores.num_examples == 200


@pytest.mark.parametrize("metric", [accuracy, nll, brier, score])
def test_logits_are_refused(metric):
    with pytest.raises(ValueError, match="logits need a softmax first: row 0"):
        metric(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
