"""A run yields what it saves, adds nothing to the algorithms, and leaves what is done when it is stopped."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dswag import ClientError, ConfigError, InProcess, api, predictive
from dswag.data.class_counts import ClassCounts
from dswag.data.sources import DataNotFoundError
from dswag.evaluation.metrics import score
from dswag.lab.baselines.method import Problem, complete
from dswag.lab.experiments import foreign
from dswag.lab.experiments.loss_landscape import points, survey
from dswag.lab.experiments.measurements import OWN
from dswag.lab.experiments.recipe import Experiment, Recipe, build
from dswag.lab.experiments.run import Continuing, Evaluating, Exploring, Starting, Surveying, execute
from dswag.lab.experiments.scoring import ENSEMBLE, FEDAVG, PHASE_1, Scored, prediction_seed, score_methods
from dswag.lab.models.normalize import Normalize
from dswag.runs import RunFolder
from dswag.runs.schema import ExploreRecord, RoundRecord

TINY = Recipe(clients=3, rounds=2, explore_epochs=2, samples=3, landscape_examples=50)
METHODS = [PHASE_1, "mean model", "DSWAG", "DSWAG diagonal", ENSEMBLE]


def clients_of(experiment):
    return experiment.engine._clients


@pytest.fixture(scope="module")
def experiment():
    return build(TINY, workers=1)


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    """The folder of a complete run, and its events."""
    folder = RunFolder.create(tmp_path_factory.mktemp("run"), TINY)
    return folder, list(execute(experiment, folder))


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", TINY)


def test_events_come_in_the_order_of_the_algorithm(finished):
    _, events = finished
    before = [Starting, RoundRecord, RoundRecord, Exploring, ExploreRecord, Evaluating]
    assert [type(event) for event in events] == before + [Scored] * 5 + [Surveying]
    assert (events[0].rounds, events[0].faults) == (0, ())
    assert [event.round for event in events[1:3]] == [1, 2]
    assert events[3].explorers == 3 * TINY.explore_exchanges == 6
    assert events[5].methods == 5
    assert [event.method for event in events[6:11]] == METHODS
    assert events[11].points == 2 * 9 + 81


def test_what_was_yielded_is_saved(experiment, finished):
    folder, events = finished
    assert folder.history() == tuple(events[1:3])
    assert folder.exploration() == events[4]
    assert folder.checkpoint().server.round == 2
    metrics = folder.metrics()
    assert dict(metrics.scores) == {event.method: event.scores for event in events[6:11]}
    assert dict(metrics.reliability) == {event.method: event.reliability for event in events[6:11]}
    assert (metrics.samples, metrics.scale) == (3, 1.0)
    assert folder.partition() == ClassCounts.of(experiment.parts, experiment.dataset.train.targets, "0123456789")
    assert list(metrics.seconds) == ["phase 1", "phase 2", "evaluation", "landscape"]
    assert metrics.seconds["phase 1"] == sum(event.seconds for event in events[1:3])


def test_differences_to_the_phase_1_model_are_those_of_the_same_examples(experiment, finished):
    folder, events = finished
    differences = folder.metrics().nll_differences
    assert differences == {event.method: event.nll_difference for event in events[7:11]}
    assert list(differences) == METHODS[1:]
    scores = folder.metrics().scores
    for method, difference in differences.items():
        assert difference.estimate == pytest.approx(scores[method].nll - scores[PHASE_1].nll, abs=1e-6)
        assert difference.low < difference.estimate < difference.high
    unpaired = 2 * 1.96 * 2**0.5 * scores[PHASE_1].nll / scores[PHASE_1].num_examples ** 0.5
    assert all(difference.high - difference.low < unpaired for difference in differences.values())


def test_the_same_budget_spent_on_phase_1_is_what_others_are_compared_with(experiment, tmp_path):
    """That of the method `fedavg`, which has the same clients, epochs and rates."""
    recipe = replace(TINY, equal_budget=True, landscape_examples=0)
    folder = RunFolder.create(tmp_path, recipe)
    events = list(execute(replace(experiment, recipe=recipe), folder))
    assert [type(event) for event in events[4:7]] == [ExploreRecord, Continuing, Evaluating]
    assert (events[5].rounds, events[6].methods) == (2, 6)
    found = folder.metrics()
    assert list(found.scores) == [PHASE_1, FEDAVG, *METHODS[1:]]
    predictor, _ = complete(OWN["fedavg"], Problem(experiment.model, clients_of(experiment), recipe))
    test = experiment.dataset.test
    assert found.scores[FEDAVG] == score(predictor(test.inputs).probabilities, test.targets)
    assert found.baseline == FEDAVG
    assert list(found.nll_differences) == [PHASE_1, *METHODS[1:]]
    difference = found.scores["DSWAG"].nll - found.scores[FEDAVG].nll
    assert found.nll_differences["DSWAG"].estimate == pytest.approx(difference, abs=1e-6)
    assert set(found.bands) == {FEDAVG, "DSWAG"}
    assert "same budget" in found.seconds


def test_phase_2_tells_of_as_many_answers_as_it_said_it_takes(experiment, tmp_path):
    told, said = [], None
    for event in execute(experiment, RunFolder.create(tmp_path / "run", TINY), advance=lambda: told.append(None)):
        if isinstance(event, Exploring):
            said = event.explorers
        if isinstance(event, ExploreRecord):
            break
    assert len(told) == said


def test_rates_that_rise_leave_nothing_to_compare_with():
    with pytest.raises(ConfigError, match="equal_budget goes on at falling rates"):
        replace(TINY, equal_budget=True, explore_final_learning_rate=0.1)


def test_uncertainty_is_that_of_the_draws_and_shows_the_inputs_that_stand_out(experiment, finished):
    folder, _ = finished
    found, dataset = folder.metrics().uncertainty, experiment.dataset
    predicted = predictive(
        experiment.model, folder.posterior(), dataset.test.inputs, samples=3, seed=prediction_seed(TINY)
    )
    wrong = predicted.probabilities.argmax(1) != dataset.test.targets
    assert found.uncertainty.groups["wrong"].num_inputs == int(wrong.sum())
    assert found.uncertainty.groups["right"].entropy[2] == pytest.approx(float(predicted.entropy[~wrong].quantile(0.5)))
    assert found.uncertainty.groups["foreign"].num_inputs == 1000
    assert found.foreign == "mnist5k with its quarters swapped"
    assert found.disagreed[0].index == int(predicted.mutual_information.argmax())
    assert len(found.disagreed) == len(found.surest_foreign) == 10
    assert all(example.picture.startswith("data:image/png") for example in found.disagreed + found.surest_foreign)
    sure = [example.confidence for example in found.surest_foreign]
    assert sure == sorted(sure, reverse=True)


def test_foreign_inputs_that_are_not_at_hand_are_not_downloaded(experiment, monkeypatch):
    def missing(name, data_dir, *, download):
        assert not download
        raise DataNotFoundError(name)

    monkeypatch.setattr("dswag.data.datasets.load_test", missing)
    what, inputs = foreign.at_hand(replace(experiment.dataset, name="mnist"), None)
    assert what == "mnist with its quarters swapped"
    assert torch.equal(inputs, foreign.swapped(experiment.dataset))


def test_posterior_is_that_of_the_short_form(experiment, finished):
    """`dswag.train` on the same model and clients is the reference."""
    folder, _ = finished
    run = api.train(experiment.model, clients_of(experiment), TINY)
    saved = folder.posterior()
    for name, tensor in run.posterior.tensors().items():
        assert torch.equal(saved.tensors()[name], tensor)
    assert torch.equal(folder.checkpoint().server.theta, run.theta)


def test_posterior_does_not_depend_on_the_number_of_workers(finished, folder):
    list(execute(build(TINY, workers=2), folder))
    for name, tensor in finished[0].posterior().tensors().items():
        assert torch.equal(folder.posterior().tensors()[name], tensor)
    assert dict(folder.metrics().scores) == dict(finished[0].metrics().scores)
    assert folder.landscape() == finished[0].landscape()


def test_accuracy_after_the_last_round_is_that_of_the_phase_1_model(finished):
    folder, _ = finished
    assert folder.history()[-1].test_accuracy == folder.metrics().scores[PHASE_1].accuracy


def test_scoring_again_gives_the_same_scores(experiment, finished):
    folder, _ = finished
    again = {
        s.method: s.scores for s in score_methods(experiment, folder.checkpoint().server.theta, folder.posterior())
    }
    before = dict(folder.metrics().scores)
    del before[ENSEMBLE]
    assert again == before


def test_surveying_again_gives_the_same_landscape_and_counts_its_points(experiment, finished):
    folder, counted = finished[0], []
    again = survey(experiment, folder.posterior(), folder.checkpoint().server.theta, lambda: counted.append(None))
    assert again == folder.landscape()
    assert again.num_examples == 50
    assert len(counted) == points(experiment.recipe, folder.posterior())


def test_a_run_without_examples_for_it_has_no_landscape(experiment, folder):
    events = list(execute(replace(experiment, recipe=replace(TINY, landscape_examples=0)), folder))
    assert not [event for event in events if isinstance(event, Surveying)]
    assert folder.landscape() is None
    assert "landscape" not in folder.metrics().seconds


def test_batch_norm_model_runs_without_accuracy_between_rounds(experiment, folder):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    model = nn.Sequential(Normalize(experiment.dataset.mean, experiment.dataset.std), network)
    engine = InProcess(model, clients_of(experiment))
    events = list(execute(Experiment(TINY, experiment.dataset, model, engine, experiment.parts), folder))
    assert [event.test_accuracy for event in events[1:3]] == [None, None]
    assert list(folder.metrics().scores) == METHODS


def test_left_early_it_leaves_the_rounds_done(experiment, folder):
    for event in execute(experiment, folder):
        if isinstance(event, RoundRecord):
            break
    assert [record.round for record in folder.history()] == [1]
    assert folder.checkpoint().server.round == 1


def test_a_client_that_fails_is_named(folder):
    diverging = build(Recipe(clients=3, rounds=1, learning_rate=1e30))
    with pytest.raises(ClientError, match=r"client \d failed in round 1, epoch 1: .*learning rate 1e"):
        list(execute(diverging, folder))
    assert folder.history() == ()
