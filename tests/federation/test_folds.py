"""Folds that keep snapshots, tally metrics, or do two things at once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.client.evaluation import ClientEvaluation, EvaluateResult, Tally
from dswag.federation.aggregation import Mean
from dswag.federation.client_results import TrainResult
from dswag.federation.folds import Both, Snapshots


def trained(index, snapshots=2):
    thetas = torch.arange(3.0 * snapshots).view(snapshots, 3) + 100 * index
    return TrainResult(index=index, client=index, thetas=thetas, num_examples=index + 1, loss=0.5)


def evaluated(num_examples, loss_sum, num_correct):
    return EvaluateResult(
        index=0,
        client=0,
        num_examples=num_examples,
        loss_sum=loss_sum,
        loss_weight=num_examples,
        num_correct=num_correct,
        calibration_error=None if num_correct is None else 0.5,
    )


def fold_of(fold, results):
    for result in results:
        fold.add(result)
    return fold


def test_snapshots_come_out_in_task_order_a_row_each():
    rows = fold_of(Snapshots(), [trained(0), trained(1, snapshots=3)]).result()
    assert torch.equal(rows, torch.cat([trained(0).thetas, trained(1, snapshots=3).thetas]))


def test_merged_snapshots_come_after_ones_own():
    first, second = fold_of(Snapshots(), [trained(0)]), fold_of(Snapshots(), [trained(1), trained(2)])
    first.merge(second)
    assert torch.equal(first.result(), fold_of(Snapshots(), map(trained, range(3))).result())
    assert len(second.result()) == 4


def test_no_snapshots_are_an_error():
    with pytest.raises(ValueError, match="no snapshots were taken in: add a result first"):
        Snapshots().result()


def test_tally_weighs_every_example_the_same():
    tally = fold_of(Tally(), [evaluated(1, 3.0, 0), evaluated(3, 1.0, 3)])
    found = tally.result()
    assert (found.loss, found.accuracy, found.num_examples) == (1.0, 0.75, 4)


def test_tally_keeps_what_each_client_measured_by_its_number():
    sums = [replace(evaluated(2, 3.0, 1), client=2, loss_weight=6.0), replace(evaluated(0, 0.0, 0), client=1)]
    found = fold_of(Tally(), sums).result()
    assert found.loss == 0.5
    none = {"loss": None, "accuracy": None, "calibration_error": None, "num_examples": 0}
    assert found.clients == (
        ClientEvaluation(client=1, **none),
        ClientEvaluation(client=2, loss=0.5, accuracy=0.5, calibration_error=0.5, num_examples=2),
    )
    with pytest.raises(ValueError, match="no client has a label that counts"):
        fold_of(Tally(), sums[1:]).result()


# sums of sixteenths are exact, so that equality is too
sums = st.tuples(st.integers(1, 50), st.integers(0, 1000).map(lambda n: n / 16), st.none() | st.integers(0, 50))


@given(st.lists(sums, min_size=1, max_size=8), st.data())
def test_tally_of_parts_equals_tally_of_all(values, data):
    results = [evaluated(*value) for value in values]
    cut = data.draw(st.integers(0, len(results)))
    first, second = fold_of(Tally(), results[:cut]), fold_of(Tally(), results[cut:])
    first.merge(second)
    assert first.result() == fold_of(Tally(), results).result()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_client_without_an_accuracy_leaves_none(order):
    results = [evaluated(1, 1.0, None), evaluated(1, 1.0, 1)]
    assert fold_of(Tally(), [results[i] for i in order]).result().accuracy is None


def test_a_tally_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing to average over: add a result first"):
        Tally().result()


def test_both_gives_what_each_fold_gives_alone():
    def folds():
        return Mean(torch.zeros(3)), Snapshots()

    results = [trained(index) for index in range(4)]
    together = fold_of(Both(*folds()), results[:2])
    together.merge(fold_of(Both(*folds()), results[2:]))
    mean, snapshots = (fold_of(fold, results).result() for fold in folds())
    assert torch.equal(together.result()[0].theta, mean.theta)
    assert torch.equal(together.result()[1], snapshots)


def test_both_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="add a result first"):
        Both(Mean(torch.zeros(3)), Snapshots()).result()
