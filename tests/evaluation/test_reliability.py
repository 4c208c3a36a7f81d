"""Calibration against a slow float64 loop, torchmetrics and laws that hold for any predictions."""

import dataclasses
import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from dswag.evaluation.alignment import check_predictions
from dswag.evaluation.reliability import Reliability, expected_calibration_error, reliability

BINNINGS = ["equal-mass", "equal-width"]


def softmax_predictions(n: int, c: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    noisy = logits + torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits.softmax(1).to(dtype), noisy.argmax(1)


def two_classes(confidence: list[float], correct: list[bool]) -> tuple[Tensor, Tensor]:
    first = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1), torch.tensor([0 if right else 1 for right in correct])


def slow_bins(probabilities: Tensor, targets: Tensor, bins: int, binning: str) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, count) of the bins that hold examples, one example at a time, accuracies as fractions."""
    examples = sorted(
        (max(row), Fraction(int(row.index(max(row)) == target)))
        for row, target in zip(probabilities.tolist(), targets.tolist(), strict=True)
    )
    members: list[list[tuple[float, Fraction]]] = [[] for _ in range(bins)]
    for rank, (confidence, right) in enumerate(examples):
        if binning == "equal-width":
            index = next((i for i in range(bins) if confidence < (i + 1) / bins), bins - 1)
        else:
            equals = [other_right for other, other_right in examples if other == confidence]
            right = sum(equals, Fraction(0)) / len(equals)
            index = next(i for i in range(bins) if rank < Fraction((i + 1) * len(examples), bins))
        members[index].append((confidence, right))
    return [
        (sum(c for c, _ in bin_) / len(bin_), float(sum((a for _, a in bin_), Fraction(0)) / len(bin_)), len(bin_))
        for bin_ in members
        if bin_
    ]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Few distinct probabilities, so that ties and bin edges are common."""
    n, c = draw(st.integers(1, 16)), draw(st.integers(2, 3))
    weights = draw(st.lists(st.lists(st.integers(0, 5), min_size=c, max_size=c).filter(any), min_size=n, max_size=n))
    targets = draw(st.lists(st.integers(0, c - 1), min_size=n, max_size=n))
    table = torch.tensor(weights, dtype=torch.float64)
    return table / table.sum(1, keepdim=True), torch.tensor(targets)


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("bins", [1, 7, 20])
@pytest.mark.parametrize("n", [1, 19, 20, 333])
def test_bins_and_error_equal_a_slow_loop(binning, bins, n):
    probabilities, targets = softmax_predictions(n, 4, seed=n)
    probabilities = (probabilities * 16).round().clamp(min=1)  # ties
    probabilities /= probabilities.sum(1, keepdim=True)
    expected = slow_bins(probabilities, targets, bins, binning)
    curve = reliability(probabilities, targets, bins=bins, binning=binning)
    assert curve.count == tuple(count for _, _, count in expected)
    assert curve.confidence == pytest.approx([confidence for confidence, _, _ in expected], abs=1e-12)
    assert curve.accuracy == pytest.approx([accuracy for _, accuracy, _ in expected], abs=1e-12)
    assert expected_calibration_error(probabilities, targets, bins=bins, binning=binning) == pytest.approx(
        sum(count / n * abs(confidence - accuracy) for confidence, accuracy, count in expected), abs=1e-12
    )


@pytest.mark.parametrize("bins", [5, 15, 20])
def test_equal_width_error_agrees_with_torchmetrics_below_confidence_one(bins):
    probabilities, targets = softmax_predictions(2000, 10, seed=3)
    assert expected_calibration_error(probabilities, targets, bins=bins, binning="equal-width") == pytest.approx(
        float(multiclass_calibration_error(probabilities, targets, num_classes=10, n_bins=bins)),
        abs=1e-6,  # torchmetrics sums in float32
    )


def test_confidence_one_belongs_to_the_last_bin_and_torchmetrics_gives_it_one_of_its_own():
    probabilities, targets = two_classes([1.0, 0.96], [False, True])
    curve = reliability(probabilities, targets, bins=20, binning="equal-width")
    assert curve.count == (2,)
    assert expected_calibration_error(probabilities, targets, bins=20, binning="equal-width") == pytest.approx(0.48)
    theirs = multiclass_calibration_error(probabilities, targets, num_classes=2, n_bins=20)
    assert float(theirs) == pytest.approx(0.52)  # (|1 - 0| + |0.96 - 1|) / 2: two bins


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [10, 20])
def test_a_confidence_on_an_edge_belongs_to_the_bin_above_in_every_dtype(dtype, bins):
    edges = torch.arange(bins // 2, bins, dtype=torch.float64) / bins
    probabilities = torch.stack([edges, 1 - edges], dim=1).to(dtype)
    curve = reliability(probabilities, torch.zeros(len(edges), dtype=torch.int64), bins=bins, binning="equal-width")
    assert curve.count == (1,) * (bins // 2)


def test_equal_mass_bins_of_known_numbers():
    probabilities, targets = two_classes([0.9, 0.6, 0.8, 0.7], [True, False, False, True])
    curve = reliability(probabilities, targets, bins=2)
    assert curve.confidence == pytest.approx((0.65, 0.85))
    assert curve.accuracy == (0.5, 0.5)
    assert curve.gap == pytest.approx((0.15, 0.35))  # positive: overconfident
    assert expected_calibration_error(probabilities, targets, bins=2) == pytest.approx(0.25)


def test_examples_of_equal_confidence_share_their_accuracy():
    probabilities, targets = two_classes([0.8] * 4, [True, True, True, False])
    curve = reliability(probabilities, targets, bins=2)
    assert curve.count == (2, 2)
    assert curve.accuracy == (0.75, 0.75)


@pytest.mark.parametrize("binning", BINNINGS)
def test_bins_without_examples_are_left_out(binning):
    probabilities, targets = two_classes([0.6, 0.9], [True, True])
    curve = reliability(probabilities, targets, bins=20, binning=binning)
    assert curve.confidence == (0.6, 0.9)
    assert curve.count == (1, 1)


@pytest.mark.parametrize("binning", BINNINGS)
@settings(max_examples=50, deadline=None)
@given(data=st.data(), predicted=predictions(), bins=st.integers(1, 12))
def test_reliability_does_not_depend_on_the_order_of_examples(binning, data, predicted, bins):
    probabilities, targets = predicted
    order = torch.tensor(data.draw(st.permutations(range(len(targets)))))
    assert reliability(probabilities[order], targets[order], bins=bins, binning=binning) == reliability(
        probabilities, targets, bins=bins, binning=binning
    )


@settings(max_examples=50, deadline=None)
@given(predicted=predictions(), bins=st.integers(1, 50))
def test_equal_mass_bins_differ_by_at_most_one_example_and_rise_in_confidence(predicted, bins):
    curve = reliability(*predicted, bins=bins)
    assert len(curve.count) == min(bins, len(predicted[1]))
    assert max(curve.count) - min(curve.count) <= 1
    assert all(low <= high + 1e-15 for low, high in zip(curve.confidence, curve.confidence[1:], strict=False))


@pytest.mark.parametrize("binning", BINNINGS)
@settings(max_examples=50, deadline=None)
@given(predicted=predictions(), bins=st.integers(1, 12))
def test_gaps_add_up_to_mean_confidence_minus_accuracy(binning, predicted, bins):
    probabilities, targets = predicted
    curve = reliability(probabilities, targets, bins=bins, binning=binning)
    confidence, predicted_class = probabilities.max(1)
    overall = float(confidence.mean() - (predicted_class == targets).double().mean())
    assert sum(curve.count) == len(targets)
    assert sum(n * gap for n, gap in zip(curve.count, curve.gap, strict=True)) / len(targets) == pytest.approx(
        overall, abs=1e-12
    )
    error = expected_calibration_error(probabilities, targets, bins=bins, binning=binning)
    assert abs(overall) - 1e-12 <= error <= 1
    if bins == 1:
        assert error == pytest.approx(abs(overall), abs=1e-12)


def test_a_reliability_curve_survives_json():
    curve = reliability(*softmax_predictions(100, 3, seed=0))
    read = json.loads(json.dumps(dataclasses.asdict(curve)))
    assert Reliability(read.pop("binning"), **{name: tuple(values) for name, values in read.items()}) == curve


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_softmax_of_many_classes_is_accepted_in_every_dtype(dtype):
    check_predictions(*softmax_predictions(200, 1000, seed=1, dtype=dtype))


GOOD = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (GOOD[0, 0], LABELS, r"probabilities must be floating with shape \[n, c\], got torch.float32 \[\]"),
        (GOOD.long(), LABELS, r"probabilities must be floating .* got torch.int64"),
        (GOOD, LABELS[:, None], r"go with targets \[n\].*, got \[2, 2\] and \[2, 1\]"),
        (GOOD, LABELS.float(), "targets must be whole numbers, got torch.float32"),
        (GOOD, LABELS[:1], "must pair up, got 2 rows and 1 targets"),
        (GOOD[:0], LABELS[:0], r"at least one example and one class, got shape \[0, 2\]"),
        (GOOD[:, :0], LABELS, r"at least one example and one class, got shape \[2, 0\]"),
        (GOOD * torch.tensor([[1.0], [torch.nan]]), LABELS, r"free of NaN: row 1 is \[nan, nan\]"),
        (torch.tensor([[1.25, -0.25], [0.5, 0.5]]), LABELS, "not be negative: row 0"),
        (GOOD * torch.tensor([[1.0], [1.01]]), LABELS, r"sum to 1 in every row \(within 0.001\).*: row 1 .* sum 1.01"),
        (torch.tensor([[torch.inf, 0.0], [0.5, 0.5]]), LABELS, "sum to 1 .* row 0 .* sum inf"),
        (torch.full((1, 7), 2.0), LABELS[:1], r"row 0 is \[2, 2, 2, 2, 2, \.\.\.\] with sum 14"),
        (GOOD, torch.tensor([0, 2]), "must lie in 0 to 1 for 2 classes, got 2 in example 1"),
        (GOOD, torch.tensor([-1, 0]), "must lie in 0 to 1 for 2 classes, got -1 in example 0"),
    ],
)
def test_bad_predictions_are_refused(probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        reliability(probabilities, targets)


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        expected_calibration_error(GOOD, LABELS, bins=0)
    with pytest.raises(ValueError, match='binning must be "equal-mass" or "equal-width", got \'equal\''):
        reliability(GOOD, LABELS, binning="equal")
