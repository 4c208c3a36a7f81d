"""Training that is kept is training that was done, and is done once."""

import json
from dataclasses import replace

import pytest
import torch

from dswag.baselines.method import complete
from dswag.experiments.measurements import OWN
from dswag.experiments.recipe import build
from dswag.experiments.trained import train
from dswag.folds import Snapshots
from dswag.parameters import Layout
from dswag.prediction import ensemble
from dswag.server import Server
from dswag.training import explore, synchronize

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
    assert len(list(tmp_path.glob("*/phase-1.safetensors"))) == 2
    assert len(list(tmp_path.glob("*/phase-2-*.safetensors"))) == 3


def test_files_of_other_settings_under_the_same_name_are_not_used(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    train(build(recipe), tmp_path)
    (about,) = tmp_path.glob("*/phase-1.json")
    read = json.loads(about.read_text())
    read["settings"]["momentum"] = 0.5  # a default that was another when they were written
    about.write_text(json.dumps(read))
    assert rounds_trained(build(recipe), tmp_path) == 1


def test_methods_start_from_what_was_trained_at_its_cost(tiny_run):
    predictor, cost = complete(OWN["phase-1"], tiny_run.problem)
    inputs = tiny_run.experiment.dataset.test.inputs[:20]
    expected = ensemble(tiny_run.experiment.model, tiny_run.theta[None], inputs)
    assert torch.equal(predictor(inputs).probabilities, expected.probabilities)
    assert cost.examples == tiny_run.rounds.cost.examples == 2 * 3600  # two rounds, a tenth held out
    _, cost = complete(OWN["ensemble"], tiny_run.problem)
    assert cost.examples == 4 * 3600
