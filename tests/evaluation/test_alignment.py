"""Predictions in every form: the scores are those of the same predictions as tensors [n, c] and int64 [n]."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss, log_loss

from dswag.evaluation.bootstrap import reliability_band
from dswag.evaluation.inspection import inspect
from dswag.evaluation.metrics import accuracy, brier, nll, nll_of_each, score
from dswag.evaluation.reliability import expected_calibration_error, reliability
from dswag.evaluation.temperature import calibrated_nll, fit_temperature, temper


def predictions(*shape, c=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(*shape, c, generator=generator, dtype=torch.float64)
    targets = (logits + torch.randn(*shape, c, generator=generator)).argmax(-1)
    return logits.softmax(-1), targets


INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_any_integer_type_and_numpy_arrays_score_the_same(dtype):
    probabilities, targets = predictions(60)
    expected = score(probabilities, targets)
    assert score(probabilities, targets.to(dtype)) == expected
    assert score(probabilities.numpy(), targets.to(dtype).numpy()) == expected
    assert score(probabilities.tolist(), targets.tolist()) == expected


def test_every_metric_takes_numpy_arrays():
    probabilities, targets = predictions(60)
    arrays, classes = (probabilities.numpy(), targets.numpy().astype(np.int32)), ["a", "b", "c"]
    for metric in (accuracy, nll, brier, expected_calibration_error, reliability, fit_temperature, calibrated_nll):
        assert metric(*arrays) == metric(probabilities, targets)
    assert torch.equal(nll_of_each(*arrays), nll_of_each(probabilities, targets))
    assert inspect(*arrays, classes) == inspect(probabilities, targets, classes)
    band = reliability_band(*arrays, bins=3, seed=0, resamples=20)
    assert band == reliability_band(probabilities, targets, bins=3, seed=0, resamples=20)


def test_boolean_targets_are_two_classes():
    probabilities, targets = predictions(60, c=2)
    assert score(probabilities, targets.bool()) == score(probabilities, targets)


def test_tokens_and_pixels_are_examples():
    probabilities, targets = predictions(5, 4)
    expected = score(probabilities.reshape(20, 3), targets.reshape(20))
    assert score(probabilities, targets) == expected  # [n, t, c]
    assert score(probabilities.movedim(2, 1), targets) == expected  # [n, c, t], which [n, t] tells
    pixels, labels = predictions(5, 4, 2)
    expected = score(pixels.reshape(40, 3), labels.reshape(40))
    assert score(pixels.movedim(3, 1), labels) == expected  # [n, c, h, w]
    assert score(pixels, labels) == expected


def test_ignored_targets_do_not_count():
    probabilities, targets = predictions(40)
    some = torch.arange(40) % 3 == 0
    padded = torch.where(some, targets, -100)
    assert score(probabilities, padded) == score(probabilities[some], targets[some])
    assert nll(probabilities, padded) == pytest.approx(float(F.cross_entropy(probabilities.log(), padded)))
    void = padded.where(padded >= 0, 255).to(torch.uint8)  # as segmentation masks have it
    assert score(probabilities, void, ignore_index=255) == score(probabilities, padded)
    for metric in (accuracy, nll, brier, reliability, expected_calibration_error):
        assert metric(probabilities, void, ignore_index=255) == metric(probabilities, padded)
    with pytest.raises(ValueError, match="must lie in 0 to 2 for 3 classes, got 255"):
        score(probabilities, void)
    with pytest.raises(ValueError, match="nothing to score: every target is -100"):
        score(probabilities, torch.full((40,), -100))


def test_yes_or_no_labels_score_as_scikit_learn_says():
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    labels = torch.rand(50, 4, generator=generator) < p
    scores = score(p, labels)
    assert scores.num_examples == 200
    assert scores.nll == pytest.approx(log_loss(labels.flatten(), p.flatten().numpy()))
    assert scores.brier == pytest.approx(2 * brier_score_loss(labels.flatten(), p.flatten().numpy()))
    assert scores.accuracy == float(((p > 0.5) == labels).double().mean())
    assert score(p, labels.float()) == scores  # as BCEWithLogitsLoss wants them
    one = score(p[:, 0], labels[:, 0])
    assert score(p[:, :1], labels[:, 0]) == score(p[:, :1], labels[:, :1].int()) == one


def test_sums_are_taken_in_float64():
    """A million examples in half precision: sums in it would stop growing at 2,048."""
    probabilities = torch.tensor([[0.75, 0.25]], dtype=torch.float16).expand(1_000_000, 2)
    targets = torch.zeros(1_000_000, dtype=torch.uint8)
    assert nll(probabilities, targets) == pytest.approx(-np.log(0.75), rel=1e-12)
    assert brier(probabilities, targets) == pytest.approx(2 * 0.25**2, rel=1e-12)
    assert expected_calibration_error(probabilities, targets) == pytest.approx(0.25, rel=1e-12)


def test_a_sigmoid_is_tempered_as_the_softmax_of_its_two_classes():
    p = torch.tensor([0.0, 0.01, 0.5, 0.9, 1.0], dtype=torch.float64)
    two = temper(torch.stack([1 - p, p], 1), 2.5)[:, 1]
    torch.testing.assert_close(temper(p, 2.5, axis=None), two)
    assert torch.equal(temper(p, 1.0, axis=None), p)


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (torch.tensor([[3.0], [0.2]]), torch.tensor([1, 0]), "must lie in 0 to 1, got 3 at 0: logits need a sigmoid"),
        (torch.tensor([0.3, 0.2]), torch.tensor([0.5, 0.0]), "must be 0 or 1, got shares between"),
        (torch.tensor([[0.3, 0.7], [0.6, 0.4]]), torch.eye(2), "one-hot form.*argmax"),
        (torch.rand(4, 3, 2), torch.zeros(4, 5), "targets must be whole numbers"),
        (torch.rand(4, 3, 2), torch.zeros(4, 5).long(), r"got \[4, 3, 2\] and \[4, 5\]"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        score(probabilities, targets)
