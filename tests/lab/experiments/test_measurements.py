"""What is measured for figures and tables, against the parts that it is made of."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from dswag.algorithms.prediction import ensemble
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data.augmentation import CropAndFlip
from dswag.data.datasets import ImageDataset
from dswag.data.examples import Examples
from dswag.engines.in_process import InProcess
from dswag.evaluation.metrics import accuracy, nll, nll_of_each
from dswag.evaluation.temperature import calibrated_nll
from dswag.lab.baselines.distributed_swag import posterior as posterior_of
from dswag.lab.baselines.method import Trial, complete
from dswag.lab.experiments.measurements import OWN, calibration, course, distances, methods, surroundings
from dswag.lab.experiments.plan import load
from dswag.lab.experiments.recipe import Experiment
from dswag.lab.experiments.trained import train
from dswag.lab.models import Normalize

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


@pytest.fixture
def posterior(tiny_run):
    return posterior_of(Trial(tiny_run.problem))


def loss(tiny_run, theta, examples=None):
    examples = examples or tiny_run.experiment.dataset.test
    probabilities = ensemble(tiny_run.experiment.model, theta[None], examples.inputs).probabilities
    return accuracy(probabilities, examples.targets), nll(probabilities, examples.targets)


def test_a_course_counts_the_steps_of_a_round(tiny_run):
    """1,000 examples a client in batches of 50, or of 63 and 62."""
    measured = course(tiny_run)
    assert measured["steps_per_round"] == 20
    smaller = replace(tiny_run.experiment, recipe=replace(tiny_run.experiment.recipe, batch_size=64))
    assert course(replace(tiny_run, experiment=smaller))["steps_per_round"] == 16
    assert [each["bytes"] for each in measured["rounds"]] == [o.bytes for o in tiny_run.rounds.outcomes]


def test_distances_are_measured_at_the_mean_and_at_so_many_standard_deviations(tiny_run, posterior):
    measured = distances(tiny_run, at=[0, 30], eigenvectors=2)
    assert list(measured["directions"]) == ["every element", "random signs", "draws", "eigenvector 1", "eigenvector 2"]
    at_mean = loss(tiny_run, posterior.mean)
    for line in measured["directions"].values():
        assert (line["accuracy"][0], line["nll"][0]) == pytest.approx(at_mean, rel=1e-6)
    far = loss(tiny_run, posterior.mean + 30 * posterior.std)
    line = measured["directions"]["every element"]
    assert (line["accuracy"][1], line["nll"][1]) == pytest.approx(far, rel=1e-6)
    assert measured["lengths"]["every element"] == pytest.approx(float(posterior.std.norm()))
    assert measured["lengths"]["random signs"] == pytest.approx(float(posterior.std.norm()))


def test_the_surroundings_have_the_mean_in_their_middle(tiny_run, posterior):
    measured = surroundings(tiny_run, span=2.0, points=3, examples=200, eigenvectors=2)
    train = tiny_run.experiment.dataset.train[:200]
    assert measured["at"] == (-2.0, 0.0, 2.0)
    assert measured["lines"]["test"][1][1] == pytest.approx(loss(tiny_run, posterior.mean)[1])
    (plane,) = measured["planes"]
    assert plane["loss"][1][1] == pytest.approx(loss(tiny_run, posterior.mean, train)[1])
    assert plane["loss"][1] == pytest.approx(measured["lines"]["train"][0])  # the middle row is the first eigenvector's
    assert [row[1] for row in plane["loss"]] == pytest.approx(measured["lines"]["train"][1])
    assert sum(measured["eigenvalues"]) < measured["total_variance"]
    trace = posterior.variance.double().sum() / 2 + posterior.deviations.double().square().sum() / (2 * 3)
    assert measured["total_variance"] == pytest.approx(float(trace), rel=1e-6)


def test_matched_noise_has_the_total_variance_of_the_posterior(tiny_run, posterior):
    """Accuracies of both are those of draws whose mean squared distances from the mean are alike: 199,210 weights."""
    measured = methods(tiny_run, methods=["noise-matched", "dswag-mean"], reference="dswag-mean")
    assert measured["noise-matched"]["nll"] != measured["dswag-mean"]["nll"]
    assert measured["noise-matched"]["nll"] == pytest.approx(measured["dswag-mean"]["nll"], rel=0.05)


def test_methods_are_scored_compared_and_priced(tiny_run):
    measured = methods(
        tiny_run, methods=["phase-1", "dswag", "dswag-calibrated"], outside="mnist5k", shifted_examples=50
    )
    test = tiny_run.experiment.dataset.test
    predicted = {
        name: complete(OWN[name], tiny_run.problem)[0](test.inputs).probabilities for name in ("phase-1", "dswag")
    }
    difference = nll_of_each(predicted["dswag"], test.targets) - nll_of_each(predicted["phase-1"], test.targets)
    found = measured["dswag"]["nll_difference"]
    assert found["to"] == "phase-1"
    assert found["estimate"] == pytest.approx(float(difference.mean()))
    assert found["low"] < found["estimate"] < found["high"]
    assert "nll_difference" not in measured["phase-1"]
    assert measured["dswag"]["calibrated_nll"] == calibrated_nll(predicted["dswag"], test.targets, seed=0)
    assert measured["dswag"]["outside"]["entropy"]["auroc"] == 0.5  # the same images
    assert [len(each) for each in measured["dswag"]["shift"].values()] == [5] * 4
    assert measured["dswag"]["shift"]["noise"][4]["nll"] > measured["dswag"]["nll"]
    assert measured["dswag"]["cost"]["examples"] == 4 * 3600
    json.dumps(measured, allow_nan=False)


def test_a_rival_is_what_differences_are_taken_to_wherever_it_is_measured(tiny_run):
    options = {"rival": "fedavg", "outside": "mnist5k", "outside_examples": 40, "resamples": 20}
    without = methods(tiny_run, methods=["dswag"], **options)
    together = methods(tiny_run, methods=["phase-1", "fedavg", "dswag"], **options)
    assert list(without) == ["dswag"]
    found = without["dswag"]["nll_difference_to_rival"]
    assert found == together["dswag"]["nll_difference_to_rival"]
    assert found["to"] == "fedavg"
    assert found["estimate"] == pytest.approx(together["dswag"]["nll"] - together["fedavg"]["nll"], abs=1e-6)
    assert "nll_difference" not in without["dswag"]
    assert "nll_difference_to_rival" not in together["fedavg"]
    assert "nll_difference_to_rival" in together["phase-1"]
    assert without["dswag"]["outside"]["entropy"]["auroc"] != 0.5  # the first 40 are not all
    assert len(without["dswag"]["band"]["low"]) == 20


def test_calibration_has_a_band_for_each_method(tiny_run):
    measured = calibration(tiny_run, methods=["phase-1"], resamples=20)
    band = measured["phase-1"]["band"]
    assert len(band["low"]) == len(band["high"]) == len(band["curve"]["confidence"]) == 20


@pytest.fixture
def small_color_run(tmp_path):
    """Color images and BatchNorm layers, as in the experiments on CIFAR-10, at a size for a test."""
    images = torch.randint(0, 256, (90, 3, 8, 8), generator=generator_for(0), dtype=torch.uint8)
    examples = Examples(images, torch.arange(90) % 3, CropAndFlip(1))
    test = Examples(images[:30], examples.targets[:30])
    dataset = ImageDataset("small", examples, test, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    with DrawFrom(generator_for(1)):
        model = nn.Sequential(Normalize(dataset.mean, dataset.std), *layers)
    planned = load("table-cifar10").cases[1].recipe
    recipe = replace(planned, device="cpu", rounds=2, explore_epochs=2, snapshots_per_cycle=1, samples=3)
    parts = list(torch.arange(90).split(45))
    return train(Experiment(recipe, dataset, model, InProcess(model, [examples[p] for p in parts]), parts), tmp_path)


def test_what_cifar10_asks_for_runs_on_a_small_model(small_color_run):
    """In bfloat16, with augmentation, BatchNorm statistics refreshed for every draw and every point of a line."""
    options = {**load("table-cifar10").cases[1].options, "outside": None, "shifted_examples": 10}
    measured = methods(small_color_run, **options)
    assert list(measured) == ["phase-1", "dswag", "dswag-diagonal", "dswag-mean", "ensemble"]
    assert all(len(each["shift"]) == 4 for each in measured.values())
    assert small_color_run.rounds.outcomes[-1].test_accuracy is None
    line = distances(small_color_run, at=[0, 5], eigenvectors=1)["directions"]["every element"]
    assert line["nll"][0] == pytest.approx(measured["dswag-mean"]["nll"], rel=1e-4)
    assert line["nll"][0] != line["nll"][1]


def test_every_method_of_the_library_can_be_named():
    assert {"phase-1", "dswag", "dswag-diagonal", "noise-matched", "swag-global", "swag-local"} <= set(OWN)
