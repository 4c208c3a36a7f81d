"""Training that is kept is training that was done, and is done once."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from dswag.algorithms.prediction import ensemble
from dswag.algorithms.server_update import Server
from dswag.algorithms.training import explore, synchronize
from dswag.client.training import TrainTask
from dswag.core.atomic_files import held
from dswag.core.parameters import Layout
from dswag.federation.contract import ClientError
from dswag.federation.folds import Snapshots
from dswag.lab.baselines.method import Problem, complete
from dswag.lab.experiments.measurements import OWN, surroundings
from dswag.lab.experiments.recipe import build
from dswag.lab.experiments.trained import train
from dswag.runs.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def rounds_trained(experiment, work):
    words = []
    train(experiment, work, words.append)
    return len(words)


def test_it_is_what_both_phases_give(tiny_run, tiny_recipe):
    experiment = build(tiny_recipe)
    start = Server(Layout.of(experiment.model).flatten(experiment.model))
    rounds = list(synchronize(experiment.engine, start, tiny_recipe))
    assert torch.equal(tiny_run.theta, rounds[-1].theta)
    snapshots = explore(experiment.engine, tiny_run.theta, tiny_recipe, Snapshots()).fold.result()
    assert torch.equal(tiny_run.snapshots, snapshots)
    assert [outcome.train_accuracy for outcome in tiny_run.rounds.outcomes] == [done.accuracy for done in rounds]
    assert [outcome.bytes for outcome in tiny_run.rounds.outcomes] == [d.bytes_down + d.bytes_up for d in rounds]
    assert tiny_run.rounds.outcomes[-1].test_accuracy > 0.5  # of ten digits


def test_it_is_done_once_and_read_again(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    first = train(build(recipe), tmp_path)
    experiment = build(recipe)
    again = train(experiment, tmp_path, lambda words: pytest.fail(f"trained again: {words}"))
    assert torch.equal(again.theta, first.theta)
    assert torch.equal(again.snapshots, first.snapshots)
    assert (again.rounds, again.explore_cost) == (first.rounds, first.explore_cost)
    assert again.seconds > 0


def test_what_acts_after_training_and_in_phase_2_leaves_phase_1_alone(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    assert rounds_trained(build(recipe), tmp_path) == 1
    assert rounds_trained(build(replace(recipe, samples=7, rank=2)), tmp_path) == 0
    assert rounds_trained(build(replace(recipe, explore_epochs=2)), tmp_path) == 0
    assert rounds_trained(build(replace(recipe, batch_size=100)), tmp_path) == 1
    assert len(list(tmp_path.glob("*/phase-1.checkpoint.safetensors"))) == 2
    assert len(list(tmp_path.glob("*/phase-2-*/cost.json"))) == 3


def test_files_of_other_settings_under_the_same_name_are_not_used(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    train(build(recipe), tmp_path)
    (path,) = tmp_path.glob("*/phase-1.checkpoint.safetensors")
    checkpoint = Checkpoint.load(path)
    former = {**checkpoint.settings, "momentum": 0.5}  # a default that was another when they were written
    replace(checkpoint, settings=former).save(path)
    assert rounds_trained(build(recipe), tmp_path) == 1
    checkpoint.settings.pop("momentum")  # a setting that there was not yet
    checkpoint.save(path)
    assert rounds_trained(build(recipe), tmp_path) == 0


class Killed(Exception):
    """The process is no more."""


def kill_after(number):
    """What ends training once it was called so often."""
    words = []

    def advance(word):
        words.append(word)
        if len(words) == number:
            raise Killed

    return advance


@pytest.fixture
def saved_every_round(monkeypatch):
    monkeypatch.setattr("dswag.lab.experiments.trained.SAVE_EVERY", 0.0)


def assert_same(first, second):
    """But for the seconds and the memory that it took."""
    assert torch.equal(first.theta, second.theta)
    assert torch.equal(first.snapshots, second.snapshots)
    assert [replace(o, seconds=0) for o in first.rounds.outcomes] == [
        replace(o, seconds=0) for o in second.rounds.outcomes
    ]
    for cost, other in ((first.rounds.cost, second.rounds.cost), (first.explore_cost, second.explore_cost)):
        assert replace(cost, seconds=0, memory=0) == replace(other, seconds=0, memory=0)


@pytest.mark.usefixtures("saved_every_round")
@pytest.mark.parametrize("server_optimizer", ["plain", "adam"])
def test_killed_in_phase_1_it_goes_on_from_the_last_round(tiny_recipe, tmp_path, server_optimizer):
    recipe = replace(
        tiny_recipe, rounds=3, explore_epochs=1, server_optimizer=server_optimizer, server_learning_rate=0.01
    )
    recipe = replace(recipe, stop_accuracy=None)  # which is looked at once more where a run goes on
    whole = train(build(recipe), tmp_path / "whole")
    with pytest.raises(Killed):
        train(build(recipe), tmp_path / "killed", kill_after(2))
    words = []
    resumed = train(build(recipe), tmp_path / "killed", words.append)
    assert words == ["round 3 of at most 3"]
    assert_same(resumed, whole)


@pytest.mark.usefixtures("saved_every_round")
def test_rounds_that_were_written_down_before_their_weights_are_done_again(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=2, explore_epochs=1, stop_accuracy=None)
    with pytest.raises(Killed):
        train(build(recipe), tmp_path, kill_after(1))
    (path,) = tmp_path.glob("*/phase-1.checkpoint.safetensors")
    of_round_1 = path.read_bytes()
    whole = train(build(recipe), tmp_path)
    path.write_bytes(of_round_1)
    words = []
    assert_same(train(build(recipe), tmp_path, words.append), whole)
    assert words == ["round 2 of at most 2"]


@pytest.mark.parametrize("name", ["phase-1.json", "phase-1.checkpoint.safetensors"])
def test_what_cannot_be_read_is_done_again(tiny_recipe, tmp_path, name):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    whole = train(build(recipe), tmp_path)
    (path,) = tmp_path.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:100])
    assert_same(train(build(recipe), tmp_path), whole)


@pytest.mark.usefixtures("saved_every_round")
def test_phase_1_for_the_whole_budget_is_kept_and_goes_on_where_it_was_killed(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=3, stop_accuracy=None)
    experiment = build(recipe)
    whole, cost = complete(OWN["fedavg"], train(experiment, tmp_path).problem)
    alone = Problem(experiment.model, [experiment.dataset.train[part] for part in experiment.parts], recipe)
    fresh, its_cost = complete(OWN["fedavg"], alone)
    inputs = experiment.dataset.test.inputs
    assert torch.equal(whole(inputs).probabilities, fresh(inputs).probabilities)
    assert replace(cost, seconds=0, memory=0) == replace(its_cost, seconds=0, memory=0)

    again = train(build(recipe), tmp_path, lambda words: pytest.fail(f"trained again: {words}"))
    predicted, its_cost = complete(OWN["fedavg"], again.problem)
    assert torch.equal(predicted(inputs).probabilities, fresh(inputs).probabilities)
    assert its_cost.seconds >= again.continued().cost.seconds + again.rounds.cost.seconds

    train(build(recipe), tmp_path / "killed")
    with pytest.raises(Killed):
        complete(OWN["fedavg"], train(build(recipe), tmp_path / "killed", kill_after(2)).problem)
    words = []
    predicted, _ = complete(OWN["fedavg"], train(build(recipe), tmp_path / "killed", words.append).problem)
    assert words == ["round 4 of at most 4"]
    assert torch.equal(predicted(inputs).probabilities, fresh(inputs).probabilities)


def test_killed_in_phase_2_it_asks_the_explorers_that_are_left(tiny_recipe, tmp_path, monkeypatch):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    whole = train(build(recipe), tmp_path / "whole")

    def asked(task, *rest):
        explorers.append(task.client)
        if len(explorers) == death:
            raise Killed
        return answer(task, *rest)

    answer = TrainTask.run
    monkeypatch.setattr(TrainTask, "run", asked)
    explorers, death = [], 4 + 3  # the third explorer, after a round of four clients
    with pytest.raises(ClientError, match="Killed"):
        train(build(recipe, workers=1), tmp_path / "killed")
    explorers, death = [], None
    assert_same(train(build(recipe, workers=1), tmp_path / "killed"), whole)
    assert len(explorers) == 2


@pytest.mark.usefixtures("saved_every_round")
def test_what_killed_processes_leave_is_removed_and_what_serves_other_figures_stays(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, explore_epochs=1, stop_accuracy=None)
    with pytest.raises(Killed):
        train(build(recipe), tmp_path, kill_after(1))
    (folder,) = tmp_path.iterdir()
    for name in (".phase-1.json.x", ".phase-1.checkpoint.safetensors.x"):
        (folder / name).mkdir()
        (folder / name / "half").write_text("half")
    train(build(recipe), tmp_path)
    assert len(list(folder.glob("phase-2-*/0*.safetensors"))) == 4
    (phase_2,) = folder.glob("phase-2-*")
    assert {path.name for path in folder.iterdir()} == {
        "phase-1.json",
        "phase-1.checkpoint.safetensors",
        phase_2.name,
    }


def test_two_processes_that_need_one_training_do_it_once(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    train(build(recipe), tmp_path)
    (folder,) = tmp_path.iterdir()
    words = []
    with ExitStack() as other:
        other.enter_context(held(folder))

        def advance(word):
            words.append(word)
            other.close()

        train(build(recipe), tmp_path, advance)
    assert words == ["another process trains this: waiting for it"]


def test_methods_start_from_what_was_trained_at_its_cost(tiny_run):
    predictor, cost = complete(OWN["phase-1"], tiny_run.problem)
    inputs = tiny_run.experiment.dataset.test.inputs[:20]
    expected = ensemble(tiny_run.experiment.model, tiny_run.theta[None], inputs)
    assert torch.equal(predictor(inputs).probabilities, expected.probabilities)
    assert cost.examples == tiny_run.rounds.cost.examples == 2 * 3600  # two rounds, a tenth held out
    _, cost = complete(OWN["ensemble"], tiny_run.problem)
    assert cost.examples == 4 * 3600


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_everything_is_there_fresh_and_read_again(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, device="cuda", server_optimizer="momentum", server_learning_rate=0.5)
    fresh, read = (train(build(recipe), tmp_path) for _ in range(2))
    for trained in (fresh, read):
        assert trained.theta.is_cuda
        assert trained.snapshots.is_cuda
        assert trained.experiment.dataset.train.inputs.is_cuda
        for name in ("phase-1", "dswag", "dswag-calibrated", "swag-global", "ensemble"):
            predictor, _ = complete(OWN[name], trained.problem)
            assert torch.isfinite(predictor(trained.experiment.dataset.test.inputs[:20]).probabilities).all()
        surroundings(trained, points=3, examples=50, eigenvectors=2)
    assert torch.equal(fresh.snapshots, read.snapshots)
