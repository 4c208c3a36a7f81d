"""What holds of the Flower engine beside the laws of all engines: nodes, messages, and what may be wrong with them."""

import io
import json
import re
import threading
import weakref
from dataclasses import dataclass, replace
from importlib import reload
from typing import ClassVar

import numpy as np
import pytest
import torch
from folding import fold_answers
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from dswag import Config, predict, train
from dswag.client.calibration import CalibrateTask
from dswag.client.conformal import ConformalTask
from dswag.client.evaluation import EvaluateTask
from dswag.client.statistics import PooledStatistics, StatisticsTask
from dswag.client.training import TrainTask
from dswag.core.conformal_scores import Scoring
from dswag.core.parameters import Layout
from dswag.data.examples import Examples
from dswag.engines.in_process import InProcess
from dswag.federation.contract import ClientError, Result, Task
from dswag.federation.folds import Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.federation.result_validation import check_tensor
from dswag.federation.round_trip import round_trip
from dswag.posterior.draws import Draws

flower_grid = pytest.importorskip("flower_grid", reason="needs flwr: pip install 'dswag[flower]'")
pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict  # noqa: E402

import dswag.engines.flower  # noqa: E402
from dswag.engines.flower import Flower, census, records, simulate  # noqa: E402
from dswag.engines.flower.server import NoNodesError  # noqa: E402

SIZES = (20, 33, 11, 26)
EVERYBODY = range(4)
DRAWS = Draws(seed=3, first=0, count=2, kind="swag", scale=1.0)


class List:
    def __init__(self):
        self.answers = []

    def add(self, result):
        self.answers.append(result)

    def miss(self, error):
        self.answers.append(error)


def train_task(index, client, **options):
    given = {"learning_rates": (0.1, 0.05), "snapshots": (1, 2), "seed": client, "update": ClientUpdate(batch_size=8)}
    return TrainTask(index=index, client=client, occasion="round 3", **{**given, **options})


def statistics_task(index, client, draws=(DRAWS,)):
    size = {"batch_size": 9, "max_examples": None, "seed": client}
    return StatisticsTask(index=index, client=client, occasion="a refresh", draws=draws, **size)


def train_tasks(clients=EVERYBODY, **options):
    return [train_task(index, client, **options) for index, client in enumerate(clients)]


def theta_of(model):
    return Layout.of(model).flatten(model)


def posterior_of(model):
    theta = theta_of(model)
    return {"mean": theta, "variance": theta.square(), "deviations": torch.stack([theta, -theta])}


def spoiling(grid, node, change):
    """From now on the node's replies are what `change` makes of them; the census is over by then."""

    def spoil(message, reply):
        return change(reply) if message.metadata.dst_node_id == node else reply

    grid.spoil = spoil


@pytest.fixture
def make_federation(make_model, make_clients):
    def make(*, nodes=2, batch_norm=False, mods=(), **options):
        model, clients = make_model(batch_norm=batch_norm), make_clients(SIZES)
        grid = flower_grid.federation(model, clients, nodes=nodes, mods=mods)
        return model, clients, grid, Flower(grid, model, len(clients), **{"patience": 0, **options})

    return make


# ----------------------------------------------------------------------------------------------- the same algorithm


@pytest.mark.parametrize("nodes", [1, 3, 4])
def test_a_whole_run_is_bit_for_bit_that_of_one_process(make_federation, nodes):
    model, clients, _, engine = make_federation(nodes=nodes, batch_norm=True)
    config = Config(
        clients=4,
        rounds=3,
        clients_per_round=3,
        explorers=3,
        explore_epochs=4,
        cycles=2,
        rank=4,
        batch_size=8,
        aggregation="weighted-mean",
        stop_accuracy=1.0,
        holdout=0.2,
        calibrate=True,
    )
    runs = [train(model, (), config, engine=engine), train(model, clients, config)]
    assert [round.accuracy for round in runs[0].history] == [round.accuracy for round in runs[1].history]
    found, expected = (run.posterior for run in runs)
    assert found.count == 6
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in expected.tensors().items())
    assert (found.within_scale, found.between_scale, found.temperature) == (
        expected.within_scale,
        expected.between_scale,
        expected.temperature,
    )
    options = {"samples": 4, "seed": 1, "batch_norm_examples": 10}
    predictions = [predict(model, run.posterior, clients[0].inputs, engine=run.engine, **options) for run in runs]
    assert torch.equal(*predictions)


def test_a_refresh_for_many_draws_is_one_message_to_each_node_with_the_posterior_once(make_federation):
    model, _, grid, engine = make_federation(nodes=2, batch_norm=True)
    grid.sent.clear()
    tasks = [statistics_task(c, c, (replace(DRAWS, count=30),)) for c in EVERYBODY]
    results = list(engine.answers(posterior_of(model), tasks))
    assert [len(result.statistics) for result in results] == [30] * 4
    assert len(grid.sent) == 2
    assert all(set(m.content.array_records["payload"]) == set(posterior_of(model)) for m in grid.sent)


def test_a_node_gets_one_message_for_all_of_its_clients(make_federation):
    model, _, grid, engine = make_federation(nodes=3)
    grid.sent.clear()
    list(engine.answers({"theta": theta_of(model)}, train_tasks([3, 0, 1, 2, 0])))
    assert sorted(len(m.content.config_records["request"]["tasks"]) for m in grid.sent) == [1, 1, 3]
    assert {m.metadata.message_type for m in grid.sent} == {"train"}


def test_replies_that_came_early_wait_at_the_grid(make_federation):
    model, _, grid, engine = make_federation(nodes=4)
    waiting = []

    class Watching(List):
        def add(self, result):
            waiting.append(len(grid.replies))

    fold_answers(engine, {"theta": theta_of(model)}, train_tasks(), Watching())
    assert waiting == [3, 2, 1, 0]


def test_arrays_that_were_read_are_let_go(make_federation, monkeypatch):
    alive, most, crossed = [], [], flower_grid.crossed

    def watched(message):
        there = crossed(message)
        if there.has_content():
            alive.extend(weakref.ref(r) for name, r in there.content.items() if name.startswith("answer"))
        return there

    class Counting(List):
        def add(self, result):
            most.append(sum(reference() is not None for reference in alive))

    model, _, _, engine = make_federation(nodes=4)
    monkeypatch.setattr(flower_grid, "crossed", watched)
    fold_answers(engine, {"theta": theta_of(model)}, train_tasks(), Counting())
    assert len(alive) == 4
    assert max(most) <= 1


def test_bfloat16_differences_cross_in_half_the_bytes_and_arrive_as_they_were(make_federation):
    model, clients, grid, engine = make_federation(nodes=4)
    sizes = {}
    grid.spoil = lambda message, reply: sizes.setdefault("reply", reply) and reply
    tasks = train_tasks([2], upload="bfloat16")
    payload = {"theta": theta_of(model)}
    (found,) = list(engine.answers(payload, tasks))
    (expected,) = list(InProcess(model, clients).answers(payload, tasks))
    assert found.thetas.dtype == torch.bfloat16
    assert torch.equal(found.thetas, expected.thetas)
    (array,) = sizes["reply"].content.array_records["answer 0"].values()
    assert (array.dtype, array.shape) == ("int16", tuple(found.thetas.shape))


# ------------------------------------------------------------------------------------------------------- the nodes


def test_a_node_that_comes_back_with_another_name_takes_part_again(make_federation):
    model, _, grid, engine = make_federation(nodes=4)
    before = fold_answers(engine, {"theta": theta_of(model)}, train_tasks(), Snapshots()).result()
    gone = sorted(grid.contexts)[0]  # the node of client 3
    config = grid.contexts.pop(gone).node_config
    answers = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert str(answers[3]) == "client 3 failed in round 3: no node has it"
    assert not any(isinstance(answer, ClientError) for answer in answers[:3])
    grid.join(4711, config)
    assert torch.equal(fold_answers(engine, {"theta": theta_of(model)}, train_tasks(), Snapshots()).result(), before)


def test_of_two_nodes_with_a_client_the_later_one_has_it_where_the_other_is_dead(make_federation):
    """A node that was started again appears before Flower notices that the other one is dead."""
    model, _, grid, engine = make_federation(nodes=4, timeout=0)
    dead = min(grid.contexts)
    grid.join(4711, grid.contexts[dead].node_config)
    spoiling(grid, dead, lambda reply: None)
    answers = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert not any(isinstance(answer, ClientError) for answer in answers)


def test_of_two_nodes_with_a_client_the_earlier_one_keeps_it_while_it_answers(make_federation):
    """Otherwise a single malicious node could take all clients, whatever rule withstands some of them."""
    model, _, grid, engine = make_federation(nodes=4)
    grid.join(4711, {"partition-id": 3, "num-partitions": 4})
    for _ in range(2):  # not in the next exchange either
        grid.sent.clear()
        list(engine.answers({"theta": theta_of(model)}, train_tasks()))
        assert 4711 not in {m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"}
    grid.contexts.pop(min(grid.contexts))  # until it leaves
    answers = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert not any(isinstance(answer, ClientError) for answer in answers)


def test_two_nodes_with_the_same_client_are_refused_at_the_start(make_model, make_clients):
    model = make_model()
    grid = flower_grid.federation(model, make_clients(SIZES), nodes=4)
    grid.join(4711, {"partition-id": 1})
    with pytest.raises(ValueError, match=r"nodes 993 and 4711 both have the clients \[1\]: start each"):
        Flower(grid, model, 4, patience=0)


def test_clients_that_do_not_appear_are_named_with_what_their_nodes_said(make_model, make_clients):
    model = make_model()
    grid = flower_grid.federation(model, make_clients(SIZES), nodes=4)
    grid.join(4711, {})
    words = r"6 of 6 clients must appear, after 0 s there were 4, without \[4, 5\]; node 4711: its node answered with "
    with pytest.raises(NoNodesError, match=words + r"error 2: .*partition-id"):
        Flower(grid, model, 6, patience=0)
    assert Flower(grid, model, 6, patience=0, enough=4).num_clients == 6


def test_a_node_that_could_not_present_itself_is_asked_again_when_it_is_missed(make_model, make_clients):
    model = make_model()
    grid = flower_grid.federation(model, make_clients(SIZES), nodes=4)
    spoiling(grid, min(grid.contexts), lambda reply: Message(Error(1, "not installed yet"), reply_to=grid.sent[-1]))
    engine = Flower(grid, model, 4, patience=0, enough=3)
    grid.spoil = lambda message, reply: reply
    answers = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert not any(isinstance(answer, ClientError) for answer in answers)


def test_a_node_whose_draws_are_others_trains_but_does_not_refresh(make_model, make_clients):
    model = make_model(batch_norm=True)
    grid = flower_grid.federation(model, make_clients(SIZES), nodes=4)

    def other_draws(reply):
        draws = records.to_tensors(reply.content.array_records["draws"])["draws"]
        reply.content["draws"] = records.to_arrays({"draws": draws.flip(0)})
        reply.content.config_records["node"]["torch"] = "0.1"
        return reply

    spoiling(grid, min(grid.contexts), other_draws)
    engine = Flower(grid, model, 4, patience=0)
    grid.spoil = lambda message, reply: reply
    trained = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert not any(isinstance(answer, ClientError) for answer in trained)
    of_theta = [statistics_task(c, c, ()) for c in EVERYBODY]
    assert not any(isinstance(a, ClientError) for a in list(engine.answers({"theta": theta_of(model)}, of_theta)))
    refreshed = list(engine.answers(posterior_of(model), [statistics_task(c, c) for c in EVERYBODY]))
    assert [isinstance(answer, ClientError) for answer in refreshed] == [False, False, False, True]
    assert "its node has torch 0.1 and dswag" in str(refreshed[3])
    assert "whose draws from a posterior are not those of the server's torch" in str(refreshed[3])
    refreshed = list(engine.answers(posterior_of(model), [statistics_task(c, c) for c in EVERYBODY]))
    assert not any(isinstance(answer, ClientError) for answer in refreshed)  # it was asked again: updated, it may draw


def test_draws_that_differ_in_any_bit_are_another_s(make_model, make_clients):
    said = census.answer([2])
    assert census.read_answer(7, said).stranger is None
    draws = records.to_tensors(said.array_records["draws"])["draws"]
    draws[1, -1] = torch.nextafter(draws[1, -1], torch.tensor(torch.inf))
    said["draws"] = records.to_arrays({"draws": draws})
    assert census.read_answer(7, said).stranger is not None


# ---------------------------------------------------------------------------------------------- what may be wrong


def changed(**records_by_name):
    """A reply with some of its records replaced, those given as None left out."""

    def change(reply):
        for name, record in records_by_name.items():
            reply.content.pop(name.replace("_", " "), None)
            if record is not None:
                reply.content[name.replace("_", " ")] = record
        return reply

    return change


def answers(*texts):
    return changed(reply=ConfigRecord({"answers": list(texts)}))


def numbers(**values):
    return answers(json.dumps({"values": values}))


def arrays(**named):
    return changed(answer_0=ArrayRecord({name: Array(value) for name, value in named.items()}))


def truncated(reply):
    (array,) = reply.content.array_records["answer 0"].values()
    array.data = array.data[:-7]
    return reply


class Canary:
    """Says so where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def pickled(reply):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary()], dtype=object), allow_pickle=True)
    reply.content["answer 0"] = ArrayRecord({"theta": Array("float32", (1,), "numpy.ndarray", buffer.getvalue())})
    return reply


NODE = 979  # of client 3, in a grid of four
WRONG = {
    "an error": (
        lambda reply: Message(Error(5, "a trace\nnode gone"), reply_to=reply),
        "answered with error 5: node gone",
    ),
    "an error without words": (lambda reply: Message(Error(0), reply_to=reply), "error 0: no reason given"),
    "no reply": (lambda reply: None, "its node did not answer within 0 s"),
    "no answers": (changed(reply=None), "its node's reply cannot be read: KeyError"),
    "answers that are no list": (changed(reply=ConfigRecord({"answers": "{}"})), "TypeError: expected a list, got str"),
    "too few answers": (answers(), "ValueError: 0 answers to 1 tasks"),
    "too many answers": (answers("{}", "{}"), "ValueError: 2 answers to 1 tasks"),
    "no JSON": (answers("{"), "its answer cannot be read: "),
    "an answer of another kind": (answers("{}"), "its answer cannot be read: "),
    "numbers that are none": (numbers(num_examples="many", loss=0.1), "num_examples"),
    "no examples": (numbers(num_examples=0, loss=0.1), "num_examples"),
    "numbers that lack": (numbers(loss=0.1), "num_examples"),
    "no arrays": (changed(answer_0=None), "KeyError: 'theta'"),
    "arrays of another name": (arrays(weights=np.zeros((2, 53), np.float32)), "KeyError: 'theta'"),
    "another dtype": (arrays(theta=np.zeros((2, 53))), "must be dense torch.float32, got .* torch.float64"),
    "no numbers": (arrays(theta=np.zeros((2, 53), "U1")), "the array theta cannot be read: TypeError"),
    "a truncated array": (truncated, "the array theta cannot be read: ValueError"),
    "a pickle": (pickled, "the array theta cannot be read: ValueError: Object arrays cannot be loaded"),
    "another serialisation": (
        changed(answer_0=ArrayRecord({"theta": Array("float32", (1,), "pickle", b"x")})),
        "the array theta cannot be read: TypeError",
    ),
    "another shape": (
        arrays(theta=np.zeros((1, 53), np.float32)),
        r"must have shape \[2, 53\], got \[1, 53\]",
    ),
    "not a number": (arrays(theta=np.full((2, 53), np.nan, np.float32)), "rejected: .* finite"),
    "an infinite loss": (answers('{"values": {"num_examples": 5, "loss": Infinity}}'), "rejected: .* finite"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_reply_is_named_and_not_averaged(make_federation, change, words, capsys):
    model, clients, grid, engine = make_federation(nodes=4, timeout=0)
    payload = {"theta": theta_of(model)}
    spoiling(grid, NODE, change)
    done = round_trip(engine, payload, train_tasks(), Snapshots(), minimum=3)
    expected = fold_answers(InProcess(model, clients), payload, train_tasks([0, 1, 2]), Snapshots()).result()
    assert torch.equal(done.fold.result(), expected)
    ((client, cause),) = [(missing.client, missing.cause) for missing in done.missing]
    assert client == 3
    assert re.search(words, cause)
    assert "unpickled" not in capsys.readouterr().out


def layer(name="1", mean=(1, 5), scatter=(1, 5), counts=(9,), dtype=np.float64):
    def change(reply):
        numbers(counts={name: list(counts)})(reply)
        return arrays(**{f"{name}/mean": np.zeros(mean, dtype), f"{name}/scatter": np.ones(scatter, dtype)})(reply)

    return change


WRONG_STATISTICS = {
    "another layer": (layer("2"), r"its BatchNorm layers are {'2': 5}, the server's are {'1': 5}"),
    "another width": (layer(mean=(1, 4), scatter=(1, 4)), r"its BatchNorm layers are {'1': 4}"),
    "scatter of another width": (layer(scatter=(1, 4)), r"scatter of layer '1' must have shape \[5\], got \[4\]"),
    "counts of nothing": (layer(counts=(0,)), "count of layer '1' must be a whole number"),
    "too few counts": (layer(counts=()), "cannot be read: ValueError: zip"),
    "two draws": (layer(mean=(2, 5)), "cannot be read: ValueError: zip"),
    "float32": (layer(dtype=np.float32), "mean of layer '1' must be dense torch.float64, got .* torch.float32"),
    "no layers": (numbers(counts={}), r"its BatchNorm layers are {}, the server's are {'1': 5}"),
}


@pytest.mark.parametrize(("change", "words"), WRONG_STATISTICS.values(), ids=WRONG_STATISTICS.keys())
def test_what_is_wrong_with_statistics_is_named(make_federation, change, words):
    model, _, grid, engine = make_federation(nodes=4, batch_norm=True)
    spoiling(grid, NODE, change)
    tasks = [replace(statistics_task(c, c, ()), layers=engine.batch_norm_layers) for c in EVERYBODY]
    done = round_trip(engine, {"theta": theta_of(model)}, tasks, PooledStatistics(), minimum=3)
    ((client, cause),) = [(missing.client, missing.cause) for missing in done.missing]
    assert client == 3
    assert re.search(words, cause)


def test_a_client_that_fails_does_not_take_its_node_s_others_with_it(make_model, make_clients):
    model, clients = make_model(), make_clients(SIZES)
    clients[2] = Examples(clients[2].inputs, clients[2].targets + 5)
    engine = flower_grid.on_flower(model, clients, workers=1)
    found = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert [isinstance(answer, ClientError) for answer in found] == [False, False, True, False]


def test_a_node_that_has_other_clients_by_now_is_asked_again_which(make_federation):
    model, _, grid, engine = make_federation(nodes=2)
    one, other = sorted(grid.contexts)
    configs = [grid.contexts[node].node_config for node in (one, other)]
    configs[0]["partition-id"], configs[1]["partition-id"] = configs[1]["partition-id"], configs[0]["partition-id"]
    found = list(engine.answers({"theta": theta_of(model)}, train_tasks([1, 3, 0])))
    words = "client 1 failed in round 3: its node answered with error 2: this node has no clients [1, 3], only [0, 2]"
    assert str(found[0]) == words
    found = list(engine.answers({"theta": theta_of(model)}, train_tasks([1, 3, 0])))
    assert [answer.client for answer in found] == [1, 3, 0]


@pytest.mark.parametrize(
    "said",
    [
        {"cause": "\x1b[2J" + 10_000 * "ab\n", "epoch": None},
        {"numbers": {"num_examples": 3, 10_000 * "\x1b": "b", "loss": "c" * 10_000}},
    ],
    ids=["as a cause", "in the wrong place"],
)
def test_however_much_a_node_says_an_error_repeats_a_line(said):
    (answer,) = records.read_reply(RecordDict({"reply": ConfigRecord({"answers": [json.dumps(said)]})}), TASKS[:1])
    assert isinstance(answer, ClientError)
    assert len(answer.cause) <= 1010
    assert answer.cause.isprintable()


def test_clients_that_did_not_answer_are_asked_once_more(make_federation):
    model, _, grid, engine = make_federation(nodes=4, timeout=0)
    payload, lost = {"theta": theta_of(model)}, []
    spoiling(grid, NODE, lambda reply: reply if lost else lost.append(reply))
    done = round_trip(engine, payload, train_tasks(), List(), minimum=4)
    assert done.missing == ()
    assert sorted(result.client for result in done.fold.answers) == [0, 1, 2, 3]


def test_messages_live_longer_than_replies_are_waited_for(make_federation):
    model, _, grid, engine = make_federation(timeout=30)
    list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert grid.sent[-1].metadata.ttl == 60


# ---------------------------------------------------------------------------------------------------- the records


@dataclass(frozen=True, kw_only=True)
class CountResult(Result):
    counts: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class CountTask(Task):
    """A kind of work that nothing but this test knows."""

    classes: int
    result: ClassVar[type[Result]] = CountResult

    def run(self, payload, data, workspace):
        targets = torch.cat([targets for _, targets in data.batches(8)])
        counts = torch.bincount(targets, minlength=self.classes)
        return CountResult(index=self.index, client=self.client, counts=counts)

    def validated(self, result, payload):
        check_tensor("counts", result.counts, (self.classes,), torch.int64, least=0)
        return result


def test_work_that_no_engine_knows_is_done_on_nodes_as_in_this_process(make_federation):
    model, clients, _, engine = make_federation(nodes=2)
    tasks = [CountTask(index=c, client=c, occasion="a census", classes=3) for c in EVERYBODY]
    payload, found = {"theta": theta_of(model)}, []
    for each in (engine, InProcess(model, clients)):
        found.append([result.counts for result in round_trip(each, payload, tasks, List()).fold.answers])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_work_that_a_node_has_not_imported_is_refused():
    content = records.request(records.to_records({}), [train_task(0, 0)])
    content.config_records["request"]["kind"] = "os.system"
    with pytest.raises(records.RecordError, match=r"this node knows no work os.system: import the module"):
        records.read_request(content)


def test_training_is_not_done_where_the_mods_do_not_see_it(make_federation):
    """As by a server that would rather have weights without noise."""
    model, _, grid, engine = make_federation(nodes=4)
    push = grid.push_messages

    def disguised(messages):
        for message in messages:
            if message.metadata.message_type == "train":
                message.metadata.message_type = "query.work"
        return push(messages)

    grid.push_messages = disguised
    found = list(engine.answers({"theta": theta_of(model)}, train_tasks()))
    assert all("TrainTask came in a message for other work" in answer.cause for answer in found)


def test_a_task_of_a_newer_version_is_refused_by_the_node():
    content = records.request(records.to_records({}), [train_task(0, 0)])
    text = json.loads(content.config_records["request"]["tasks"][0])
    content.config_records["request"]["tasks"] = [json.dumps({**text, "quantize": 4}, separators=(",", ":"))]
    with pytest.raises(records.RecordError, match=r"another version than the server's, it does not know .*quantize"):
        records.read_request(content)


TASKS = [
    train_task(7, 3, upload="bfloat16", time_limit=1.5, learning_rates=(0.1, 1e-300, 1 / 3)),
    statistics_task(0, 2, (DRAWS, replace(DRAWS, within_scale=0.1))),
    EvaluateTask(index=1, client=1, occasion="Übung", batch_size=9),
    CalibrateTask(index=1, client=1, occasion="c", batch_size=9, draws=(DRAWS,), temperatures=(0.1, 1.0)),
    ConformalTask(
        index=1, client=1, occasion="s", batch_size=9, draws=DRAWS, temperature=0.7, scoring=Scoring(score="raps")
    ),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_tasks_arrive_as_they_were(task):
    content = records.request(records.to_records({}), [task])
    assert records.read_request(content) == ({}, [task])


dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(st.dictionaries(st.text(max_size=5), st.tuples(dtypes, shapes), max_size=3), st.integers(0, 2**32))
def test_tensors_arrive_as_they_were(described, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randint(-9, 9, shape, generator=generator).to(dtype) for name, (dtype, shape) in described.items()
    }
    found = records.to_tensors(records.to_arrays(tensors))
    assert list(found) == list(tensors)
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in tensors.items())


names = st.sampled_from(["numbers", "cause", "epoch", "counts", "loss", "num_examples", "1"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
)


@given(json_values.map(json.dumps), st.sampled_from(TASKS))
def test_whatever_a_node_answers_is_a_result_or_a_client_error(text, task):
    (answer,) = records.read_reply(RecordDict({"reply": ConfigRecord({"answers": [text]})}), [task])
    assert isinstance(answer, ClientError) or answer.client == task.client


# -------------------------------------------------------------------------------------------------- the simulation


@pytest.fixture
def simulate_on(monkeypatch):
    """`simulate`, with a grid inside this process instead of Ray; `during` is what the main thread does meanwhile."""
    simulation = pytest.importorskip("flwr.simulation")

    def simulate_on(grid, server, during=lambda: None):
        def run_simulation(server_app, client_app, nodes, backend_config):
            thread = threading.Thread(target=server_app, args=(grid, None))
            thread.start()
            during()
            thread.join(PATIENCE)

        monkeypatch.setattr(simulation, "run_simulation", run_simulation)
        monkeypatch.setattr("dswag.engines.flower.simulation.find_spec", lambda name: name)
        return simulate(grid.app, len(grid.contexts), server)

    return simulate_on


def test_a_simulation_gives_what_the_server_returned(make_federation, simulate_on):
    model, _, grid, _ = make_federation(nodes=4)
    assert simulate_on(grid, lambda grid: Flower(grid, model, 4).num_clients) == 4


def test_an_error_of_the_server_is_raised_where_the_simulation_was_started(make_federation, simulate_on):
    def server(grid):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        simulate_on(make_federation()[2], server)


def test_an_interrupt_reaches_the_server_at_its_next_look_at_the_grid(make_federation, simulate_on):
    _, _, grid, _ = make_federation()
    began, interrupted, seen = threading.Event(), threading.Event(), []

    def server(grid):
        began.set()
        interrupted.wait(PATIENCE)
        try:
            while True:
                grid.get_node_ids()
        except KeyboardInterrupt:
            seen.append("saved what there was")
            raise

    def during():
        began.wait(PATIENCE)
        interrupted.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_on(grid, server, during)
    assert seen == ["saved what there was"]


def test_an_interrupt_before_the_simulation_began_ends_it(make_federation, monkeypatch):
    def run_simulation(server_app, client_app, nodes, backend_config):
        raise KeyboardInterrupt

    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation, raising=False)
    monkeypatch.setattr("dswag.engines.flower.simulation.find_spec", lambda name: name)
    with pytest.raises(KeyboardInterrupt):
        simulate(make_federation()[2].app, 1, lambda grid: None)


def test_a_simulation_that_never_began_is_an_error(make_federation, monkeypatch):
    monkeypatch.setattr("flwr.simulation.run_simulation", lambda *arguments, **options: None, raising=False)
    monkeypatch.setattr("dswag.engines.flower.simulation.find_spec", lambda name: name)
    with pytest.raises(RuntimeError, match="simulation ended before it began"):
        simulate(make_federation()[2].app, 1, lambda grid: None)


def test_without_ray_a_simulation_says_how_to_get_it(make_federation, monkeypatch):
    monkeypatch.setattr("dswag.engines.flower.simulation.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"Flower's simulation needs Ray: pip install 'flwr\[simulation\]'"):
        simulate(make_federation()[2].app, 1, lambda grid: None)


def test_without_flwr_the_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"the Flower engine needs flwr: pip install 'dswag\[flower\]'"):
        reload(dswag.engines.flower)
