"""What clients answer is checked, decoded and counted, and failing ones end an exchange or are left out of it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag import ClientError, TooFewClientsError
from dswag.client.batch_norm import LayerStatistics
from dswag.client.calibration import CalibrateResult, CalibrateTask
from dswag.client.conformal import ConformalResult, ConformalTask
from dswag.client.evaluation import EvaluateResult, EvaluateTask, Tally
from dswag.client.statistics import PooledStatistics, StatisticsResult, StatisticsTask
from dswag.client.training import TrainTask
from dswag.core.conformal_scores import Scoring
from dswag.federation.aggregation import Mean
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import Part
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import Missing, num_bytes, round_trip
from dswag.posterior.draws import Draws

THETA = torch.tensor([1.0, -2.0, 3.0])
PAYLOAD = {"theta": THETA}
DRAWS = Draws(seed=0, first=0, count=2, kind="swag", scale=1.0)
UPDATE = ClientUpdate(batch_size=4)


class List:
    """A fold that keeps the answers let in."""

    def __init__(self):
        self.results = []

    def add(self, result):
        self.results.append(result)

    def merge(self, other):
        self.results += other.results

    def result(self):
        return self.results


class Scripted:
    """An engine whose clients answer as written, a list of answers for each time they are asked."""

    num_clients = 10

    def __init__(self, *times):
        self.times = list(times)
        self.asked = []

    def answers(self, payload, tasks):
        self.asked.append([task.index for task in tasks])
        return iter(self.times.pop(0))

    def combine(self, fold, failure=None):
        pass


def train_task(index=0, **options):
    given = {"learning_rates": (0.1, 0.1), "snapshots": (1, 2), "seed": 3, "update": UPDATE, "occasion": "round 4"}
    return TrainTask(index=index, client=index + 5, **{**given, **options})


def trained(index=0, **changes):
    result = TrainResult(index=index, client=index + 5, thetas=torch.ones(2, 3) * index, num_examples=7, loss=0.5)
    return replace(result, **changes)


def layer(count=4, mean=(0.0, 1.0), scatter=(1.0, 2.0), dtype=torch.float64):
    return LayerStatistics(count=count, mean=torch.tensor(mean, dtype=dtype), scatter=torch.tensor(scatter).double())


STATISTICS = StatisticsTask(
    index=0, client=5, occasion="a refresh", batch_size=2, max_examples=None, seed=0, draws=(DRAWS,)
)
EVALUATE = EvaluateTask(index=0, client=5, occasion="an evaluation", batch_size=2)
CALIBRATE = CalibrateTask(
    index=0, client=5, occasion="calibration", batch_size=2, draws=(DRAWS, DRAWS), temperatures=(1.0, 2.0, 3.0)
)
GRID = torch.ones(2, 3, dtype=torch.float64)
CONFORMAL = ConformalTask(
    index=0, client=5, occasion="scores", batch_size=2, draws=DRAWS, temperature=1.0, scoring=Scoring(resolution=0.25)
)
SCORED = ConformalResult(index=0, client=5, counts=torch.tensor([1, 0, 3]))
CALIBRATED = CalibrateResult(index=0, client=5, num_examples=3, gains=-GRID, squares=GRID[..., None].expand(2, 3, 3))
SEEN = StatisticsResult(index=0, client=5, statistics=({"1": layer()}, {"1": layer()}))
EVALUATED = EvaluateResult(
    index=0, client=5, num_examples=3, loss_sum=1.5, loss_weight=3.0, num_correct=2, calibration_error=0.25
)
HALF = torch.ones(2, 3, dtype=torch.bfloat16)

FITTING = [
    (train_task(), trained()),
    (train_task(), trained(thetas=torch.full((2, 3), 3e38))),  # finite, though their sum is not
    (train_task(), trained(loss=-3)),
    (train_task(upload="bfloat16"), trained(thetas=HALF)),
    (STATISTICS, SEEN),
    (replace(STATISTICS, draws=()), replace(SEEN, statistics=({},))),  # a model without such layers
    (EVALUATE, EVALUATED),
    (EVALUATE, replace(EVALUATED, num_correct=None, calibration_error=None)),
    (EVALUATE, replace(EVALUATED, num_examples=0, loss_sum=0.0, loss_weight=0.0, num_correct=0)),  # no label counts
    (EVALUATE, replace(EVALUATED, num_correct=0)),
    (CALIBRATE, CALIBRATED),
    (CONFORMAL, SCORED),
    (CONFORMAL, replace(SCORED, counts=SCORED.counts[:0])),  # no label counts
]

FAULTS = [
    (train_task(), trained(client=6), "it is client 6's"),
    (train_task(), replace(EVALUATED), "a TrainTask was answered by a EvaluateResult"),
    (EVALUATE, trained(), "a EvaluateTask was answered by a TrainResult"),
    (train_task(), trained(thetas=[[1.0]]), "snapshots must be a tensor, got list"),
    (train_task(), trained(thetas=torch.ones(1, 3)), r"snapshots must have shape \[2, 3\], got \[1, 3\]"),
    (train_task(), trained(thetas=torch.ones(2, 4)), r"snapshots must have shape \[2, 3\], got \[2, 4\]"),
    (train_task(), trained(thetas=torch.ones(2, 3).double()), "snapshots must be dense torch.float32, got .*float64"),
    (train_task(), trained(thetas=torch.ones(2, 3).to_sparse()), "snapshots must be dense .*got torch.sparse"),
    (train_task(), trained(thetas=HALF), "snapshots must be dense torch.float32, got .*bfloat16"),
    (train_task(upload="bfloat16"), trained(), "snapshots must be dense torch.bfloat16, got .*float32"),
    (train_task(), trained(thetas=torch.full((2, 3), math.nan)), "it is not finite: snapshots"),
    (train_task(), trained(thetas=torch.tensor([[math.inf, -math.inf, 0], [0, 0, 0]])), "it is not finite: snapshots"),
    (train_task(), trained(num_examples=0), "num_examples must be a whole number from 1 to .*, got 0"),
    (train_task(), trained(num_examples=-7), "num_examples .* got -7"),
    (train_task(), trained(num_examples=True), "num_examples .* got True"),
    (train_task(), trained(num_examples=7.0), "num_examples .* got 7.0"),
    (train_task(), trained(loss=math.nan), "loss must be a finite number up to .*, got nan"),
    (train_task(), trained(num_examples=1 << 63), "num_examples must be a whole number"),
    (train_task(), trained(num_examples=(1 << 48) + 1), "num_examples must be a whole number"),
    (train_task(), trained(loss=1e281), "loss must be a finite number"),
    (train_task(), trained(loss=-(10**400)), "loss must be a finite number"),
    (train_task(), trained(loss=None), "loss must be a finite number up to .*, got None"),
    (STATISTICS, replace(SEEN, statistics=SEEN.statistics[:1]), "statistics must be of 2 draws, got 1"),
    (STATISTICS, replace(SEEN, statistics=list(SEEN.statistics)), "statistics must be a tuple of mappings"),
    (STATISTICS, replace(SEEN, statistics=({"1": 3}, {})), "must be LayerStatistics by the layer's name"),
    (STATISTICS, replace(SEEN, statistics=({1: layer()}, {})), "must be LayerStatistics by the layer's name"),
    (STATISTICS, replace(SEEN, statistics=({"1": layer(count=0)}, {})), "count of layer '1' .* got 0"),
    (STATISTICS, replace(SEEN, statistics=({"1": layer(mean=[[1.0]])}, {})), "mean of layer '1' must have one axis"),
    (STATISTICS, replace(SEEN, statistics=({"1": layer(dtype=torch.float32)}, {})), "mean of layer '1' must be dense"),
    (STATISTICS, replace(SEEN, statistics=({"1": layer(scatter=[1.0])}, {})), r"scatter of .* shape \[2\], got \[1\]"),
    (STATISTICS, replace(SEEN, statistics=({"1": layer(scatter=[1.0, -1.0])}, {})), "scatter .* at least 0, got -1"),
    (
        STATISTICS,
        replace(SEEN, statistics=({"1": layer(mean=[1.0, math.inf])}, {})),
        "it is not finite: mean of layer",
    ),
    (EVALUATE, replace(EVALUATED, num_examples=-1), "num_examples .* got -1"),
    (EVALUATE, replace(EVALUATED, loss_weight=-1.0), "loss_weight must be at least 0, got -1"),
    (EVALUATE, replace(EVALUATED, loss_weight=math.nan), "loss_weight must be a finite number"),
    (EVALUATE, replace(EVALUATED, num_correct=None), "num_correct and calibration_error go together"),
    (EVALUATE, replace(EVALUATED, calibration_error=1.5), "calibration_error must lie in 0 to 1, got 1.5"),
    (EVALUATE, replace(EVALUATED, loss_sum=math.inf), "loss_sum must be a finite number up to .*, got inf"),
    (EVALUATE, replace(EVALUATED, num_correct=-1), "num_correct must be a whole number from 0 to .*, got -1"),
    (EVALUATE, replace(EVALUATED, num_correct=4), "num_correct is 4 of 3 examples"),
    (CONFORMAL, replace(SCORED, counts=-SCORED.counts), "counts must be at least 0, got -3"),
    (CONFORMAL, replace(SCORED, counts=SCORED.counts.double()), "counts must be dense torch.int64"),
    (CONFORMAL, replace(SCORED, counts=torch.ones(6, dtype=torch.int64)), "counts must be of at most 5 bins"),
    (CONFORMAL, replace(SCORED, counts=SCORED.counts[None]), "counts must have one axis"),
    (CALIBRATE, replace(CALIBRATED, num_examples=-1), "num_examples .* got -1"),
    (CALIBRATE, replace(CALIBRATED, gains=GRID.T), r"gains must have shape \[2, 3\], got \[3, 2\]"),
    (CALIBRATE, replace(CALIBRATED, squares=GRID), r"squares must have shape \[2, 3, 3\], got \[2, 3\]"),
    (CALIBRATE, replace(CALIBRATED, squares=-CALIBRATED.squares), "squares must be at least 0, got -1"),
    (CALIBRATE, replace(CALIBRATED, gains=GRID * math.nan), "it is not finite: gains"),
]


@pytest.mark.parametrize(("task", "result"), FITTING)
def test_an_answer_that_fits_its_task_is_let_in(task, result):
    done = round_trip(Scripted([result]), PAYLOAD, [task], List())
    assert len(done.fold.results) == 1
    assert done.missing == ()


@pytest.mark.parametrize(("task", "result", "words"), FAULTS)
def test_an_answer_that_does_not_fit_is_refused_in_words(task, result, words):
    fold = List()
    with pytest.raises(ClientError, match=rf"client 5 failed in {task.occasion}: its answer was rejected: .*{words}"):
        round_trip(Scripted([result]), PAYLOAD, [task], fold)
    assert fold.results == []


@pytest.mark.parametrize(("task", "result", "words"), FAULTS)
def test_a_tolerant_exchange_names_the_client_that_it_refused(task, result, words):
    other = replace(task, index=1, client=6)
    good = next(result for fitting, result in FITTING if fitting == task)
    answers = [result, replace(good, index=1, client=6)]
    done = round_trip(Scripted(answers), PAYLOAD, [task, other], List(), minimum=1)
    assert [result.client for result in done.fold.results] == [6]
    (missing,) = done.missing
    assert missing.client == 5
    with pytest.raises(ClientError, match=words):
        raise ClientError(task, missing.cause)


def test_snapshots_come_as_differences_in_half_the_bytes_and_are_decoded():
    steps = torch.tensor([[0.5, 0.25, -1.0], [1.0, 2.0, 0.0]])  # exact in bfloat16
    task = train_task(upload="bfloat16")
    done = round_trip(Scripted([trained(thetas=steps.bfloat16())]), PAYLOAD, [task], List())
    (result,) = done.fold.results
    assert result.thetas.dtype == torch.float32
    assert torch.equal(result.thetas, THETA + steps)
    assert done.bytes_up == 2 * 3 * 2 + 4 * 8


def test_bytes_are_counted_to_the_last():
    """By hand: tensors by their elements, eight for every number, nothing for words."""
    assert num_bytes({"theta": THETA, "mean": torch.zeros(2, 2, dtype=torch.float64)}) == 12 + 32
    assert num_bytes(trained()) == 2 * 3 * 4 + 4 * 8  # index, client, num_examples, loss
    assert num_bytes(SEEN) == 2 * 8 + 2 * (8 + 2 * 2 * 8)
    assert num_bytes(EVALUATED) == 7 * 8
    assert num_bytes(replace(EVALUATED, num_correct=None)) == 6 * 8
    assert num_bytes(Part(fraction=0.1, seed=2, held_out=True)) == 3 * 8
    # index, client, two rates, two snapshots, seed, max_loss_growth;
    # and batch_size, momentum, nesterov, weight_decay, proximal
    assert num_bytes(train_task()) == 8 * 8 + 5 * 8
    tasks = [train_task(0), train_task(1)]
    done = round_trip(Scripted([trained(0), trained(1)]), PAYLOAD, tasks, List())
    assert (done.bytes_down, done.bytes_up) == (2 * (12 + 104), 2 * 56)


def fail(index, cause="out of memory", **options):
    return ClientError(train_task(index, **options), cause)


def test_a_client_that_fails_ends_an_exchange_that_needs_all():
    with pytest.raises(ClientError, match="client 6 failed in round 4: out of memory"):
        round_trip(Scripted([trained(0), fail(1)]), PAYLOAD, [train_task(0), train_task(1)], List())


def test_clients_that_fail_are_left_out_where_enough_answer():
    tasks = [train_task(index) for index in range(4)]
    engine = Scripted([trained(0), fail(1), fail(2, "vanished"), trained(3)])
    done = round_trip(engine, PAYLOAD, tasks, List(), minimum=2)
    assert [result.client for result in done.fold.results] == [5, 8]
    assert done.missing == (Missing(6, "out of memory"), Missing(7, "vanished"))
    assert engine.asked == [[0, 1, 2, 3]]  # nobody twice, for there are enough
    assert done.bytes_down == 4 * (12 + 104)
    assert done.bytes_up == 2 * 56


def test_where_too_few_answer_those_missing_are_asked_once_more():
    tasks = [train_task(index) for index in range(4)]
    engine = Scripted([trained(0), fail(1), fail(2), fail(3)], [fail(1, "again"), trained(2), trained(3)])
    done = round_trip(engine, PAYLOAD, tasks, List(), minimum=3)
    assert engine.asked == [[0, 1, 2, 3], [1, 2, 3]]
    assert [result.index for result in done.fold.results] == [0, 2, 3]
    assert done.missing == (Missing(6, "again"),)
    assert done.bytes_down == 7 * (12 + 104)
    assert done.bytes_up == 3 * 56


def test_too_few_after_asking_again_is_an_error_that_names_all_missing():
    tasks = [train_task(index) for index in range(3)]
    engine = Scripted([trained(0), fail(1), fail(2)], [fail(1), fail(2, "vanished")])
    with pytest.raises(
        TooFewClientsError,
        match=r"round 4 needs the results of at least 2 clients, got 1 of 3: "
        "client 6: out of memory; client 7: vanished$",
    ):
        round_trip(engine, PAYLOAD, tasks, List(), minimum=2)
    assert engine.times == []


def test_a_refused_answer_is_asked_for_again_and_taken_when_it_fits():
    engine = Scripted([trained(0, loss=math.nan)], [trained(0)])
    done = round_trip(engine, PAYLOAD, [train_task(0)], List(), minimum=1)
    assert [result.loss for result in done.fold.results] == [0.5]
    assert done.missing == ()


def test_sums_over_the_largest_answers_that_are_let_in_stay_numbers():
    """Of malicious clients, that would otherwise end a run which is to go on without those that fail."""
    tasks = [train_task(index) for index in range(1000)]
    answers = [trained(index, num_examples=1 << 48, loss=1e280) for index in range(1000)]
    mean = round_trip(Scripted(answers), PAYLOAD, tasks, Mean(THETA), minimum=1).fold
    assert math.isfinite(mean.result().loss)
    tasks = [replace(EVALUATE, index=index, client=index) for index in range(1000)]
    answers = [replace(EVALUATED, index=t.index, client=t.client, num_examples=1 << 48, loss_sum=1e280) for t in tasks]
    tally = round_trip(Scripted(answers), PAYLOAD, tasks, Tally(), minimum=1).fold
    assert math.isfinite(tally.result().loss)
    tasks = [replace(STATISTICS, draws=(), index=index, client=index) for index in range(1000)]
    seen = ({"1": layer(count=1 << 48)},)
    answers = [replace(SEEN, index=task.index, client=task.client, statistics=seen) for task in tasks]
    pooled = round_trip(Scripted(answers), PAYLOAD, tasks, PooledStatistics(), minimum=1).fold
    for fold in (mean, tally, pooled):
        fold.state()  # whose whole numbers have 64 bits


def test_a_second_answer_to_the_same_task_is_refused():
    tasks, answers = [train_task(0), train_task(1)], [trained(0), trained(0, loss=9.0), trained(1)]
    fold = List()
    with pytest.raises(ClientError, match="its answer was rejected: it had answered before"):
        round_trip(Scripted(answers), PAYLOAD, tasks, fold)
    done = round_trip(Scripted(answers), PAYLOAD, tasks, List(), minimum=1)
    assert [result.loss for result in done.fold.results] == [0.5, 0.5]
    assert done.missing == ()
    assert done.bytes_up == 2 * 56  # what was let in


def test_an_answer_to_no_task_is_refused_and_its_client_goes_on_missing():
    tasks, answers = [train_task(0), train_task(1)], [trained(0), trained(7, client=6)]
    with pytest.raises(ClientError, match="client 6 failed in round 4: its answer was rejected: there is no task 7"):
        round_trip(Scripted(answers), PAYLOAD, tasks, List())
    done = round_trip(Scripted(answers), PAYLOAD, tasks, List(), minimum=1)
    assert done.missing == (Missing(6, "no answer came"),)


def test_a_client_of_which_nothing_is_heard_is_missing():
    tasks = [train_task(0), train_task(1)]
    with pytest.raises(ClientError, match="client 6 failed in round 4: no answer came"):
        round_trip(Scripted([trained(0)]), PAYLOAD, tasks, List())
    assert round_trip(Scripted([trained(0)]), PAYLOAD, tasks, List(), minimum=1).missing == (
        Missing(6, "no answer came"),
    )


@pytest.mark.parametrize("other", [{"2": layer()}, {"1": layer(mean=(0.0,), scatter=(0.0,))}, {}])
def test_statistics_of_other_layers_than_the_server_s_are_refused(other):
    tasks = [replace(STATISTICS, index=index, client=index + 5, draws=(), layers={"1": 2}) for index in range(3)]
    answers = [
        StatisticsResult(index=index, client=index + 5, statistics=(seen,))
        for index, seen in enumerate([{"1": layer()}, other, {"1": layer()}])
    ]
    with pytest.raises(ClientError, match=r"client 6 failed in a refresh: .*its BatchNorm layers are .*the server's"):
        round_trip(Scripted(answers), PAYLOAD, tasks, List())
    done = round_trip(Scripted(answers), PAYLOAD, tasks, List(), minimum=2)
    assert [missing.client for missing in done.missing] == [6]


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_fold_s_own_error_is_no_fault_of_a_client(tolerant):
    class Full(List):
        def add(self, result):
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        round_trip(Scripted([trained(0)]), PAYLOAD, [train_task(0)], Full(), minimum=1 if tolerant else None)


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([0.0, 1.0, -2.5, 3e38, math.nan, math.inf]),
)
layers = st.dictionaries(
    anything, anything | st.builds(LayerStatistics, count=anything, mean=anything | tensors, scatter=anything | tensors)
)
numbers = {"index": st.integers(-1, 3), "client": st.integers(4, 8)}
results = (
    st.builds(TrainResult, **numbers, thetas=anything | tensors, num_examples=anything, loss=anything)
    | st.builds(StatisticsResult, **numbers, statistics=anything | st.lists(layers, max_size=3).map(tuple))
    | st.builds(
        EvaluateResult,
        **numbers,
        num_examples=anything,
        loss_sum=anything,
        loss_weight=anything,
        num_correct=anything,
        calibration_error=anything,
    )
    | st.builds(CalibrateResult, **numbers, num_examples=anything, gains=anything | tensors, squares=anything | tensors)
)


@given(st.sampled_from([train_task(), STATISTICS, EVALUATE, CALIBRATE, CONFORMAL]), st.lists(results, max_size=4))
def test_whatever_comes_back_is_let_in_or_refused_and_nothing_else(task, answers):
    tasks = [replace(task, index=index, client=index + 5) for index in range(3)]
    try:
        done = round_trip(Scripted(answers, []), PAYLOAD, tasks, List(), minimum=1)
    except TooFewClientsError:
        return
    clients = [result.client for result in done.fold.results] + [missing.client for missing in done.missing]
    assert sorted(clients) == [5, 6, 7]
