"""Risk and coverage against a slow loop over all orders of ties, and closed forms."""

from itertools import permutations

import pytest
import torch

from dswag.evaluation.metrics import accuracy
from dswag.evaluation.selective import aurc, excess_aurc, risk_coverage, selective_accuracy


def two_classes(confidence, right):
    first = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([first, 1 - first], 1), torch.tensor([0 if hit else 1 for hit in right])


def test_risks_are_the_mean_over_all_orders_of_ties():
    confidence, right = [0.9, 0.8, 0.8, 0.8, 0.7, 0.7], [True, False, True, True, True, False]
    curves = [
        [sum(not right[i] for i in order[: k + 1]) / (k + 1) for k in range(6)]
        for order in permutations(range(6))
        if [confidence[i] for i in order] == sorted(confidence, reverse=True)
    ]
    mean = [sum(column) / len(curves) for column in zip(*curves, strict=True)]
    found = risk_coverage(*two_classes(confidence, right))
    assert found.tolist() == pytest.approx(mean)
    assert aurc(*two_classes(confidence, right)) == pytest.approx(sum(mean) / 6)


def test_a_perfect_order_has_no_excess():
    predictions = two_classes([0.9, 0.8, 0.7, 0.6], [True, True, False, False])
    assert aurc(*predictions) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert excess_aurc(*predictions) == pytest.approx(0)
    worst = two_classes([0.6, 0.7, 0.8, 0.9], [True, True, False, False])
    assert excess_aurc(*worst) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2 - 1 / 3 - 1 / 2) / 4)


def test_selective_accuracy_is_that_of_the_most_confident():
    predictions = two_classes([0.9, 0.8, 0.7, 0.6, 0.55], [True, True, False, True, False])
    assert selective_accuracy(*predictions, coverage=0.4) == 1
    assert selective_accuracy(*predictions, coverage=0.41) == pytest.approx(2 / 3)
    assert selective_accuracy(*predictions, coverage=0.6) == pytest.approx(2 / 3)
    assert selective_accuracy(*predictions, coverage=1) == pytest.approx(accuracy(*predictions))
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\], got 0"):
        selective_accuracy(*predictions, coverage=0)
