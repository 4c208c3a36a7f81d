"""What holds of the in-process engine beside the laws of all engines."""

import threading
import weakref
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from folding import fold_answers
from patience import PATIENCE
from torch.utils.data import DataLoader, TensorDataset

from dswag.client import work
from dswag.client.calibration import CalibrateTask
from dswag.client.conformal import ConformalTask
from dswag.client.evaluation import EvaluateTask
from dswag.client.statistics import StatisticsTask
from dswag.client.training import TrainTask
from dswag.core.conformal_scores import Scoring
from dswag.core.parameters import Layout
from dswag.data.examples import Examples
from dswag.engines.in_process import InProcess
from dswag.federation.contract import ClientError
from dswag.federation.folds import Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.posterior.draws import Draws

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def tasks(clients):
    return [
        TrainTask(
            index=index,
            client=client,
            occasion="round 1",
            learning_rates=(0.1,),
            snapshots=(1,),
            seed=client,
            update=ClientUpdate(batch_size=4),
        )
        for index, client in enumerate(clients)
    ]


def payload(model):
    return {"theta": Layout.of(model).flatten(model)}


@pytest.fixture
def intra_op_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.fixture
def count_at_once(monkeypatch):
    """Counts the clients that run at once, each of which waits for `expected` of them to be there."""

    def install(expected):
        barrier = threading.Barrier(expected, timeout=PATIENCE)
        whole = work.run

        def run(task, *arguments):
            if task.index < expected:
                barrier.wait()  # broken, and so an error, if fewer than `expected` run at once
            return whole(task, *arguments)

        monkeypatch.setattr(work, "run", run)

    return install


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_as_many_clients_run_at_once_as_there_are_workers(make_model, make_clients, count_at_once, workers):
    model = make_model()
    engine = InProcess(model, make_clients((6,) * 8), workers=workers)
    count_at_once(workers)
    fold_answers(engine, payload(model), tasks(range(8)), Snapshots())


def test_by_default_there_are_as_many_workers_as_threads(make_model, make_clients, count_at_once, intra_op_threads):
    model = make_model()
    engine = InProcess(model, make_clients((6,) * 8))
    count_at_once(intra_op_threads)
    fold_answers(engine, payload(model), tasks(range(8)), Snapshots())
    assert torch.get_num_threads() == intra_op_threads


def test_the_model_may_be_changed_after_the_engine_was_made(make_model, make_clients):
    model = make_model(batch_norm=True)
    engine, start = InProcess(model, make_clients(), workers=1), payload(model)
    before = fold_answers(engine, start, tasks([0]), Snapshots()).result()
    with torch.no_grad():
        for values in (*model.parameters(), *model.buffers()):
            values.zero_()
    assert torch.equal(fold_answers(engine, start, tasks([0]), Snapshots()).result(), before)


@pytest.mark.parametrize("workers", [1, 3])
def test_at_most_two_results_a_worker_and_the_one_folded_are_alive(make_model, make_clients, monkeypatch, workers):
    born, lock, most = [], threading.Lock(), 0
    whole = work.run

    def run(*arguments):
        nonlocal most
        result = whole(*arguments)
        with lock:
            born.append(weakref.ref(result.thetas))
            most = max(most, sum(reference() is not None for reference in born))
        return result

    class Forgetting:
        def add(self, result):
            pass

    monkeypatch.setattr(work, "run", run)
    model = make_model()
    engine = InProcess(model, make_clients((4,) * 60), workers=workers)
    fold_answers(engine, payload(model), tasks(range(60)), Forgetting())
    assert len(born) == 60
    assert most <= 2 * workers + 1


def test_when_a_client_fails_those_under_way_stop_at_their_next_batch(make_model, make_clients):
    running = threading.Event()
    (examples,) = make_clients((12,))
    most = 200_000

    class Long:
        num_examples = len(examples)
        seen = 0

        def batches(self, batch_size, *, generator=None, augment=False):
            running.set()
            for self.seen in range(most):
                yield examples.inputs, examples.targets

    class Failing(Long):
        def batches(self, batch_size, *, generator=None, augment=False):
            assert running.wait(PATIENCE)
            raise OSError("the disk is gone")

    model, long = make_model(), Long()
    engine = InProcess(model, [Failing(), long], workers=2)
    with pytest.raises(ClientError, match="client 0 failed in round 1: OSError: the disk is gone"):
        fold_answers(engine, payload(model), tasks([0, 1]), Snapshots())
    assert long.seen < most - 1


def test_an_interrupted_fold_leaves_no_thread_behind(make_model, make_clients):
    class Interrupted:
        def add(self, result):
            raise KeyboardInterrupt

    model, alive = make_model(), threading.active_count()
    engine = InProcess(model, make_clients((9,) * 20), workers=2)
    with pytest.raises(KeyboardInterrupt):
        fold_answers(engine, payload(model), tasks(range(20)), Interrupted())
    assert threading.active_count() == alive
    assert fold_answers(engine, payload(model), tasks(range(20)), Snapshots()).result().isfinite().all()


def test_when_a_fold_fails_the_workers_stop_before_its_error_is_handled(make_model, make_clients):
    """A traceback keeps the engine's frame alive: the workers must not wait until it is forgotten."""

    class Failing:
        def add(self, result):
            raise OSError("the disk is full")

    (examples,) = make_clients((12,))
    running, most = threading.Event(), 200_000

    class Long:
        num_examples = len(examples)
        seen = 0

        def batches(self, batch_size, *, generator=None, augment=False):
            running.set()
            for self.seen in range(most):
                yield examples.inputs, examples.targets

    class Short(Long):
        def batches(self, batch_size, *, generator=None, augment=False):
            assert running.wait(PATIENCE)
            yield examples.inputs, examples.targets

    model, long, alive = make_model(), Long(), threading.active_count()
    engine = InProcess(model, [Short(), long], workers=2)
    with pytest.raises(OSError, match="the disk is full") as caught:
        fold_answers(engine, payload(model), tasks([0, 1]), Failing())
    assert caught.traceback
    assert threading.active_count() == alive
    assert long.seen < most - 1


def test_an_engine_that_is_at_work_takes_no_other_tasks(make_model, make_clients):
    """Two exchanges would have trained in the same copies of the model, and spoiled both."""
    model = make_model()
    engine = InProcess(model, make_clients(), workers=2)

    class Asking(Snapshots):
        def add(self, result):
            fold_answers(engine, payload(model), tasks([1]), Snapshots())

    with pytest.raises(RuntimeError, match="this engine is at work already: give each thread that asks clients an eng"):
        fold_answers(engine, payload(model), tasks([0]), Asking())
    assert len(fold_answers(engine, payload(model), tasks([0]), Snapshots()).result()) == 1  # then it is free again


@pytest.mark.parametrize("kind", [TrainTask, StatisticsTask, EvaluateTask, CalibrateTask, ConformalTask])
def test_data_that_can_be_passed_over_only_once_are_named(make_model, make_clients, kind):
    (examples,) = make_clients((12,))

    class Once:
        num_examples = len(examples)

        def __init__(self):
            self.batches_left = examples.batches(4)

        def batches(self, batch_size, *, generator=None, augment=False):
            return self.batches_left

    model = make_model(batch_norm=True)
    theta = payload(model)["theta"]
    draws = Draws(seed=3, first=0, count=1, kind="diagonal", scale=1.0)
    options = {
        TrainTask: {"learning_rates": (0.1, 0.1), "snapshots": (2,), "seed": 0, "update": ClientUpdate(batch_size=4)},
        StatisticsTask: {"batch_size": 4, "max_examples": None, "seed": 0},
        EvaluateTask: {"batch_size": 4},
        CalibrateTask: {"batch_size": 4, "draws": (draws,), "temperatures": (1.0,)},
        ConformalTask: {"batch_size": 4, "draws": draws, "temperature": 1.0, "scoring": Scoring()},
    }
    once = Once()
    if kind is not TrainTask:
        list(once.batches(4))  # nothing is left; training passes over them itself, in its first epoch
    task = kind(index=0, client=0, occasion="round 1", **options[kind])
    given = {"theta": theta, "mean": theta, "variance": theta.square(), "deviations": theta.expand(2, -1)}
    with pytest.raises(ClientError, match="gave no batch: `batches` must start a new pass whenever it is called"):
        fold_answers(InProcess(model, [once]), given, [task], Snapshots())


def test_the_cause_of_a_failure_is_kept_for_debuggers(make_model, make_clients):
    (examples,) = make_clients((5,))
    engine = InProcess(make_model(), [(examples.inputs, examples.targets + 5)])
    with pytest.raises(ClientError) as caught:
        fold_answers(engine, payload(make_model()), tasks([0]), Snapshots())
    assert isinstance(caught.value.__cause__, IndexError)
    assert caught.value.task.client == 0


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(make_model, make_clients, workers):
    with pytest.raises(ValueError, match=f"workers must be at least 1, got {workers}"):
        InProcess(make_model(), make_clients(), workers=workers)


def test_no_clients_are_refused(make_model):
    with pytest.raises(ValueError, match="needs the data of at least one client, got none"):
        InProcess(make_model(), [])


def test_a_model_without_parameters_is_refused(make_clients):
    with pytest.raises(ValueError, match="Tanh has no trainable parameters"):
        InProcess(torch.nn.Tanh(), make_clients())


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((torch.zeros(0, 6), torch.zeros(0)), ValueError, "client 1: examples are empty"),
        ((torch.zeros(5, 6), torch.zeros(4)), ValueError, "client 1: inputs and targets must pair up, got 5 inputs, 4"),
        ((torch.full((5, 6), torch.nan), torch.zeros(5)), ValueError, "client 1: inputs must be finite.* example 0"),
        (torch.utils.data.TensorDataset(torch.zeros(0, 6), torch.zeros(0)), ValueError, "client 1: examples are empty"),
        ("examples.csv", TypeError, "client 1: a client's data must be a pair of tensors .*, a Dataset or a"),
        (torch.zeros(5, 6), TypeError, "client 1: a client's data must be .* got Tensor"),
        (None, TypeError, "client 1: .* got NoneType"),
    ],
)
def test_data_that_cannot_be_names_its_client_before_any_work(make_model, make_clients, data, error, words):
    good = make_clients((5, 6))
    with pytest.raises(error, match=words):
        InProcess(make_model(), [good[0], data, good[1]])


def test_data_in_a_form_of_one_s_own_are_taken(make_model, make_clients):
    (examples,) = make_clients((20,))

    class Own:
        num_examples = 20

        def batches(self, batch_size, *, generator=None, augment=False):
            return examples.batches(batch_size, generator=generator)

    model = make_model()
    found = [
        fold_answers(InProcess(model, [d]), payload(model), tasks([0]), Snapshots()).result() for d in (examples, Own())
    ]
    assert torch.equal(*found)


class Lazy(Sequence):
    """Data that are made when they are asked for, of which the third cannot be."""

    def __init__(self, examples):
        self.examples, self.asked = examples, []

    def __len__(self):
        return 100

    def __getitem__(self, client):
        self.asked.append(client)
        if client == 3:
            raise FileNotFoundError("client-3.csv")
        return self.examples


def test_a_sequence_is_asked_for_the_data_of_those_who_have_tasks(make_model, make_clients):
    model, (examples,) = make_model(), make_clients((12,))
    lazy = Lazy(examples)
    engine = InProcess(model, lazy, workers=2)
    assert (engine.num_clients, lazy.asked) == (100, [])
    found = fold_answers(engine, payload(model), tasks([99, 7]), Snapshots()).result()
    assert sorted(lazy.asked) == [7, 99]
    listed = fold_answers(InProcess(model, [examples] * 100), payload(model), tasks([99, 7]), Snapshots()).result()
    assert torch.equal(found, listed)
    with pytest.raises(ClientError, match=r"client 3 failed in round 1: FileNotFoundError: client-3\.csv"):
        fold_answers(engine, payload(model), tasks([3]), Snapshots())


def test_the_loss_given_is_the_loss_used(make_model, make_clients):
    calls = []

    def loss(outputs, targets):
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets, label_smoothing=0.2)

    model = make_model()
    clients = [Examples(e.inputs, e.targets) for e in make_clients((9, 4))]
    smooth = fold_answers(
        InProcess(model, clients, loss=loss, workers=1), payload(model), tasks([0, 1]), Snapshots()
    ).result()
    assert sum(calls) == 13
    assert not torch.equal(
        smooth, fold_answers(InProcess(model, clients), payload(model), tasks([0, 1]), Snapshots()).result()
    )


@pytest.mark.parametrize("wrap", [lambda x: x, TensorDataset, lambda x: DataLoader(TensorDataset(x), batch_size=2)])
def test_the_data_of_one_client_are_no_sequence_of_clients(make_model, wrap):
    with pytest.raises(TypeError, match="clients must be a sequence with the data of each client, got one"):
        InProcess(make_model(), wrap(torch.zeros(6, 6)))
