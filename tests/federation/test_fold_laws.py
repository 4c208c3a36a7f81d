"""The laws that every fold keeps; a new fold joins by a row in FOLDS."""

import math
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.client.batch_norm import LayerStatistics
from dswag.client.calibration import CalibrateResult, SummedGains
from dswag.client.conformal import ConformalResult, CountedScores
from dswag.client.evaluation import EvaluateResult, Tally
from dswag.client.statistics import PooledStatistics, StatisticsResult
from dswag.client.training import TrainTask
from dswag.core.randomness import generator_for
from dswag.federation.aggregation import Mean, aggregator
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import ClientError
from dswag.federation.coordinates import PER_COORDINATE
from dswag.federation.folds import Both, Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import Attendance
from dswag.posterior.moments import Moments

D = 7
CLIENTS = 6


def values(*shape, seed):
    """Sixteenths, whose sums and squares are exact in float64 in whatever order."""
    return torch.randint(-64, 65, shape, generator=generator_for(seed)) / 16


def trained(index):
    thetas = values(1 + index % 2, D, seed=index)
    return TrainResult(index=index, client=9 - index, thetas=thetas, num_examples=3 + index, loss=index / 4)


def measured(index):
    seen = [
        LayerStatistics(count=4, mean=values(3, seed=10 * index + draw).double(), scatter=torch.ones(3).double())
        for draw in range(2)
    ]
    return StatisticsResult(index=index, client=index, statistics=tuple({"": one, "deep.norm": one} for one in seen))


def evaluated(index):
    return replace(regressed(index), num_correct=index, calibration_error=index / 16)


def regressed(index):
    weight = 2.0 + index
    return EvaluateResult(index=index, client=index, num_examples=2 + index, loss_sum=index / 8, loss_weight=weight)


def calibrated(index):
    gains = values(2, 3, seed=index).double()
    return CalibrateResult(index=index, client=index, num_examples=5, gains=gains, squares=gains.square())


def scored(index):
    return ConformalResult(index=index, client=index, counts=torch.arange(1, 2 + index))


TASKS = [
    TrainTask(
        index=index,
        client=9 - index,
        occasion="round 1",
        learning_rates=(0.1,) * 2,
        snapshots=(1, 2)[: 1 + index % 2],
        seed=0,
        update=ClientUpdate(batch_size=1),
    )
    for index in range(CLIENTS)
]


def attendance():
    return Attendance(TASKS)


FOLDS = {
    "mean": (lambda: Mean(torch.zeros(D)), trained),
    "weighted mean": (lambda: Mean(torch.zeros(D), weighted=True), trained),
    "median": (lambda: aggregator("median", torch.zeros(D), byzantine=1), trained),
    "clipped trimmed mean": (
        lambda: aggregator("trimmed-mean", torch.zeros(D), byzantine="20%", clip_update=2.0),
        trained,
    ),
    "moments": (lambda: Moments(torch.ones(D), dtype=torch.float64, rank=3), trained),
    "moments without an anchor": (lambda: Moments(rank=3, dtype=torch.float64), trained),
    "moments without columns": (lambda: Moments(torch.ones(D), dtype=torch.float64, rank=0), trained),
    "snapshots": (Snapshots, trained),
    "tally": (Tally, evaluated),
    "tally of regressions": (Tally, regressed),
    "both": (lambda: Both(Mean(torch.zeros(D)), Snapshots()), trained),
    "gains": (SummedGains, calibrated),
    "conformal scores": (CountedScores, scored),
}
ALMOST = {
    "statistics": (PooledStatistics, measured),  # Chan's merge divides by counts that are no powers of two
    "principal moments": (lambda: Moments(torch.ones(D), dtype=torch.float64, rank=D, columns="svd"), trained),
}
each_fold = pytest.mark.parametrize(("make", "answer"), {**FOLDS, **ALMOST}.values(), ids={**FOLDS, **ALMOST}.keys())
each_exact_fold = pytest.mark.parametrize(("make", "answer"), FOLDS.values(), ids=FOLDS.keys())


def fold_of(make, results):
    fold = make()
    for result in results:
        fold.add(result)
    return fold


def carried(fold):
    """The same fold in another place."""
    there = fold.empty()
    there.load(fold.state())
    return there


def flat(outcome):
    """All numbers in an outcome; the covariance instead of columns, whose signs and order are free."""
    if outcome is None:
        return []
    if hasattr(outcome, "deviations"):
        outcome = (outcome.mean, outcome.variance, outcome.deviations.T @ outcome.deviations, outcome.count)
    if isinstance(outcome, torch.Tensor):
        return [outcome.double().flatten()]
    if isinstance(outcome, dict):
        outcome = tuple(outcome[name] for name in sorted(outcome))
    if is_dataclass(outcome):
        outcome = tuple(getattr(outcome, field.name) for field in fields(outcome))
    if isinstance(outcome, tuple):
        return [part for one in outcome for part in flat(one)]
    return [torch.tensor([float(outcome)], dtype=torch.float64)]


def same_state(first, second):
    one, other = first.state(), second.state()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each_fold
def test_a_state_loaded_elsewhere_goes_on_like_the_fold_itself(make, answer):
    fold = fold_of(make, map(answer, range(4)))
    there = carried(fold)
    assert same_state(fold, there)
    for fold_or_copy in (fold, there):
        fold_or_copy.add(answer(4))
    assert all(torch.equal(a, b) for a, b in zip(flat(fold.result()), flat(there.result()), strict=True))


@each_fold
def test_what_was_loaded_leaves_the_fold_that_gave_it_alone(make, answer):
    fold = fold_of(make, map(answer, range(4)))
    before = flat(fold.result())
    there = carried(fold)
    there.add(answer(4))
    there.merge(carried(fold_of(make, [answer(5)])))
    assert all(torch.equal(a, b) for a, b in zip(flat(fold.result()), before, strict=True))


@each_fold
def test_loading_replaces_what_was_there(make, answer):
    fold, other = fold_of(make, [answer(0)]), fold_of(make, map(answer, range(1, 4)))
    fold.load(other.state())
    assert same_state(fold, other)
    fold.load(make().state())
    assert same_state(fold, make())


@each_fold
def test_an_empty_fold_has_the_same_settings_and_no_content(make, answer):
    empty = fold_of(make, [answer(0)]).empty()
    with pytest.raises(ValueError, match=r"add a result|at least 2 snapshots"):
        empty.result()
    results = [answer(index) for index in range(4)]
    for result in results:
        empty.add(result)
    assert same_state(empty, fold_of(make, results))


def in_parts(make, results, cuts):
    """Folded by several, carried to one place, and merged there in order."""
    bounds = [0, *sorted(cuts), len(results)]
    parts = [fold_of(make, results[start:end]) for start, end in pairwise(bounds)]
    whole = make()
    for part in parts:
        whole.merge(carried(part))
    return whole


@each_exact_fold
@given(cuts=st.lists(st.integers(0, CLIENTS), max_size=3))
def test_parts_that_were_carried_and_merged_are_the_whole(make, answer, cuts):
    results = [answer(index) for index in range(CLIENTS)]
    found, expected = in_parts(make, results, cuts).result(), fold_of(make, results).result()
    assert all(torch.equal(a, b) for a, b in zip(flat(found), flat(expected), strict=True))


@pytest.mark.parametrize(("make", "answer"), ALMOST.values(), ids=ALMOST.keys())
@given(cuts=st.lists(st.integers(0, CLIENTS), max_size=3))
def test_parts_that_were_carried_and_merged_are_almost_the_whole(make, answer, cuts):
    results = [answer(index) for index in range(CLIENTS)]
    found, expected = in_parts(make, results, cuts).result(), fold_of(make, results).result()
    for a, b in zip(flat(found), flat(expected), strict=True):
        # columns are float32: 9 snapshots of size 4, each multiplied a few times, in a covariance of about 16
        torch.testing.assert_close(a, b, rtol=1e-5, atol=16 * 32 * 2**-24)


def cut(state, start, end):
    """The state of a range of coordinates."""
    return {name: t[..., start:end] if name.endswith(PER_COORDINATE) else t for name, t in state.items()}


@each_exact_fold
def test_ranges_of_coordinates_merge_like_the_whole(make, answer):
    results = [answer(index) for index in range(CLIENTS)]
    parts, ranges = [fold_of(make, results[:2]), fold_of(make, results[2:])], [(0, 3), (3, D)]
    states = []
    for start, end in ranges:
        merged = make().empty()
        for number, part in enumerate(parts):
            there = make().empty()
            there.load(cut(part.state(), start, end))
            if number == 0:
                merged = there
            else:
                merged.merge(there)
        states.append(merged.state())
    joined = {
        name: torch.cat([state[name] for state in states], -1) if name.endswith(PER_COORDINATE) else tensor
        for name, tensor in states[0].items()
    }
    whole = make()
    whole.load(joined)
    expected = fold_of(make, results).result()
    assert all(torch.equal(a, b) for a, b in zip(flat(whole.result()), flat(expected), strict=True))


def test_snapshots_come_out_in_task_order_however_they_were_merged():
    late, early = fold_of(Snapshots, [trained(3), trained(1)]), fold_of(Snapshots, [trained(2), trained(0)])
    late.merge(carried(early))
    assert torch.equal(late.result(), torch.cat([trained(index).thetas for index in range(4)]))


def test_printed_columns_are_carried_but_not_merged():
    def make():
        return Moments(torch.ones(D), rank=3, centering="running")

    fold = fold_of(make, map(trained, range(3)))
    there = carried(fold)
    for one in (fold, there):
        one.add(trained(3))
    assert torch.equal(fold.result().deviations, there.result().deviations)
    with pytest.raises(ValueError, match="centered on the running mean cannot be merged"):
        fold.merge(there)


def test_attendance_carries_who_is_missing_and_forgets_those_who_came_after_all():
    first = attendance()
    first.add(trained(0))
    first.note(ClientError(TASKS[1], "the disk is gone", epoch=2))
    first.note(ClientError(TASKS[2], "loss is naïve"))
    there = carried(first)
    assert [str(error) for error in there.missing()[:3]] == [
        "client 8 failed in round 1, epoch 2: the disk is gone",
        "client 7 failed in round 1: loss is naïve",
        "client 6 failed in round 1: no answer came",
    ]
    again = there.empty()
    again.add(trained(1))
    there.merge(carried(again))
    assert [error.task.index for error in there.missing()] == list(range(2, CLIENTS))
    assert there.accepted == {0, 1}
    assert there.bytes_up == first.bytes_up + again.bytes_up


def test_folds_within_both_learn_that_they_hold_a_range():
    class Spread(Mean):
        def spread(self, coordinates):
            self.coordinates = coordinates

    fold, coordinates = Spread(torch.zeros(D)), object()
    Both(Mean(torch.zeros(D)), fold).spread(coordinates)
    assert fold.coordinates is coordinates


def test_a_tally_knows_that_one_part_had_no_accuracy():
    first, second = fold_of(Tally, [evaluated(0)]), fold_of(Tally, [regressed(1)])
    first.merge(carried(second))
    assert first.result().accuracy is None
    assert not math.isnan(first.result().loss)
