"""Answers that were saved are taken from disk, in their turn, and only where they answer this very task."""

import math
from dataclasses import replace

import pytest
import torch
from folding import fold_answers
from samples import cut, flip

from dswag import ClientError, Config, InProcess, Layout, Moments, collect, explore
from dswag.client.evaluation import EvaluateTask
from dswag.client.training import TrainTask
from dswag.core.atomic_files import SaveError
from dswag.engines.recorded import Recorded
from dswag.federation.client_results import TrainResult
from dswag.federation.folds import Both, Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import round_trip

SIZES = (20, 33, 11, 26, 14)
CONFIG = Config(clients=5, explore_epochs=4, cycles=2, batch_size=9, rank=3)


class Counting:
    """Another engine that remembers what it was asked, and stops, as a process that is killed, before some tasks."""

    def __init__(self, engine, stop_before=None):
        self.engine, self.num_clients, self.stop_before, self.asked = engine, engine.num_clients, stop_before, []

    def answers(self, payload, tasks):
        for task in tasks:
            if task.index == self.stop_before:
                raise KeyboardInterrupt
            self.asked.append(task.index)
            yield from self.engine.answers(payload, [task])

    def combine(self, fold, failure=None):
        pass


@pytest.fixture
def engine(make_model, make_clients):
    return InProcess(make_model(), make_clients(SIZES), workers=1)


@pytest.fixture
def theta(make_model):
    model = make_model()
    return Layout.of(model).flatten(model)


FOLDS = {
    "moments": lambda theta: collect(theta, CONFIG),
    "printed columns": lambda theta: Moments(theta, rank=3, centering="running"),
    "principal columns": lambda theta: Moments(theta, rank=3, columns="svd"),
    "snapshots": lambda theta: Snapshots(),
}


def bits(outcome):
    return [outcome] if isinstance(outcome, torch.Tensor) else list(outcome.tensors().values())


@pytest.mark.parametrize("make_fold", FOLDS.values(), ids=FOLDS.keys())
@pytest.mark.parametrize("upload", ["float32", "bfloat16"])
def test_stopped_before_any_task_and_resumed_it_gives_the_same_bits_in_every_fold(
    engine, theta, tmp_path, make_fold, upload
):
    config = replace(CONFIG, upload=upload)
    whole = explore(engine, theta, config, make_fold(theta))
    for stop in range(5):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            explore(Recorded(Counting(engine, stop), folder), theta, config, make_fold(theta))
        rest = Counting(engine)
        resumed = explore(Recorded(rest, folder), theta, config, make_fold(theta))
        assert rest.asked == list(range(stop, 5))
        pairs = zip(bits(resumed.fold.result()), bits(whole.fold.result()), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert (resumed.bytes_down, resumed.bytes_up) == (whole.bytes_down, whole.bytes_up)


def test_answers_missing_in_the_middle_are_folded_in_their_turn(engine, theta, tmp_path):
    folder = tmp_path / "answers"
    whole = explore(Recorded(engine, folder), theta, CONFIG, Snapshots()).fold
    for index in (1, 3):
        _answer(folder, index).unlink()
    rest, order = Counting(engine), []
    fold = explore(Recorded(rest, folder, answered=lambda: order.append(len(rest.asked))), theta, CONFIG, Snapshots())
    assert rest.asked == [1, 3]
    assert order == [0, 1, 1, 2, 2]  # 0 before 1 is asked, and 2 before 3
    assert torch.equal(fold.fold.result(), whole.result())


def test_all_saved_means_nobody_is_asked(engine, theta, tmp_path):
    explore(Recorded(engine, tmp_path), theta, CONFIG, Snapshots())
    rest = Counting(engine)
    explore(Recorded(rest, tmp_path), theta, CONFIG, Both(Snapshots(), collect(theta, CONFIG)))
    assert rest.asked == []


def test_what_a_killed_process_left_of_an_answer_goes_when_it_is_saved(engine, theta, tmp_path):
    explore(Recorded(engine, tmp_path), theta, CONFIG, Snapshots())
    answer = _answer(tmp_path, 2)
    answer.unlink()
    half = tmp_path / f".{answer.name}.x"
    half.mkdir()
    (half / ".tmpabcdef").write_text("left by safetensors")
    explore(Recorded(engine, tmp_path), theta, CONFIG, Snapshots())
    assert sorted(tmp_path.iterdir()) == [_answer(tmp_path, index) for index in range(5)]


DAMAGES = {
    "truncated": cut,
    "one bit of a weight": lambda path: flip(path, -3),
    "one bit of a number": lambda path: flip(path, path.read_bytes().index(b"num_examples") + 16),
    "text": lambda path: path.write_text("no tensors"),
    "a folder's worth of nothing": lambda path: path.unlink(),
    "another client's": lambda path: path.write_bytes(_answer(path.parent, 3).read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_an_answer_that_was_damaged_is_asked_for_again(engine, theta, tmp_path, damage):
    whole = explore(Recorded(engine, tmp_path), theta, CONFIG, Snapshots()).fold.result()
    damage(_answer(tmp_path, 2))
    rest = Counting(engine)
    assert torch.equal(explore(Recorded(rest, tmp_path), theta, CONFIG, Snapshots()).fold.result(), whole)
    assert rest.asked == [2]
    explore(Recorded(rest, tmp_path), theta, CONFIG, Snapshots())
    assert rest.asked == [2]  # and saved


@pytest.mark.parametrize(
    "changed",
    [{"explore_learning_rate": 0.02}, {"seed": 1}, {"batch_size": 10}, {"momentum": 0.8}, {"client_time_limit": 1e6}],
)
def test_answers_to_other_tasks_are_never_used(engine, theta, tmp_path, changed):
    explore(Recorded(engine, tmp_path), theta, CONFIG, Snapshots())
    config = replace(CONFIG, **changed)
    rest = Counting(engine)
    found = explore(Recorded(rest, tmp_path), theta, config, Snapshots()).fold.result()
    assert rest.asked == [0, 1, 2, 3, 4]
    assert torch.equal(found, explore(engine, theta, config, Snapshots()).fold.result())


def test_answers_to_another_payload_are_never_used(engine, theta, tmp_path):
    explore(Recorded(engine, tmp_path), theta, CONFIG, Snapshots())
    rest, other = Counting(engine), theta.clone()
    other[7] = other[7].nextafter(torch.tensor(math.inf))
    explore(Recorded(rest, tmp_path), other, CONFIG, Snapshots())
    assert rest.asked == [0, 1, 2, 3, 4]


def train_task(index, **options):
    given = {"learning_rates": (0.1,), "snapshots": (1,), "seed": 3, "occasion": "round 1"}
    return TrainTask(index=index, client=index, update=ClientUpdate(batch_size=9), **{**given, **options})


class Scripted:
    num_clients = 3

    def __init__(self, *script):
        self.script = list(script)

    def answers(self, payload, tasks):
        return (self.script.pop(0)(task) for task in tasks)

    def combine(self, fold, failure=None):
        pass


def good(task):
    thetas = torch.full((1, 2), float(task.index))
    return TrainResult(index=task.index, client=task.client, thetas=thetas, num_examples=3, loss=0.1)


def bad(task):
    return replace(good(task), thetas=[math.nan], loss=math.nan)


def failing(task):
    return ClientError(task, "vanished")


@pytest.mark.parametrize("wrong", [bad, failing])
def test_a_client_that_failed_is_asked_again_in_the_exchange_and_by_a_resumed_one(tmp_path, wrong):
    payload, tasks = {"theta": torch.zeros(2)}, [train_task(index) for index in range(3)]
    first = round_trip(Recorded(Scripted(good, wrong, good), tmp_path), payload, tasks, Snapshots(), minimum=2)
    assert [missing.client for missing in first.missing] == [1]
    again = round_trip(Recorded(Scripted(wrong, good), tmp_path), payload, tasks, Snapshots(), minimum=3)
    assert again.missing == ()
    assert sorted(again.fold.result()[:, 0].tolist()) == [0, 1, 2]
    third = round_trip(Recorded(Scripted(), tmp_path), payload, tasks, Snapshots())
    assert third.fold.result()[:, 0].tolist() == [0, 1, 2]


def test_an_answer_that_ended_an_exchange_is_not_saved(tmp_path):
    payload, tasks = {"theta": torch.zeros(2)}, [train_task(index) for index in range(2)]
    with pytest.raises(ClientError, match="client 1 failed"):
        round_trip(Recorded(Scripted(good, bad), tmp_path), payload, tasks, Snapshots())
    assert list(tmp_path.iterdir()) == [_answer(tmp_path, 0)]


def test_other_tasks_go_through_unrecorded(engine, theta, tmp_path):
    tasks = [EvaluateTask(index=index, client=index, occasion="a look", batch_size=9) for index in range(5)]
    rest = Counting(engine)
    recorded = Recorded(rest, tmp_path / "answers")
    assert recorded.num_clients == 5
    for _ in range(2):
        fold_answers(recorded, {"theta": theta}, tasks, Ignoring())
    assert rest.asked == [0, 1, 2, 3, 4] * 2
    assert not (tmp_path / "answers").exists()
    with pytest.raises(ValueError, match="no tasks"):
        fold_answers(Recorded(engine, tmp_path), {"theta": theta}, [], Ignoring())


class Ignoring:
    def add(self, result):
        pass


def test_a_place_that_cannot_be_written_is_one_error(engine, theta, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"00000-\w+.safetensors cannot be written \(.*\): make room for"):
        explore(Recorded(engine, tmp_path / "file" / "answers"), theta, CONFIG, Snapshots())


def _answer(folder, index):
    """The file of the answer to the task with this index."""
    (path,) = folder.glob(f"{index:05d}-*.safetensors")
    return path
