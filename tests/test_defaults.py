"""The defaults do on real digits what the method is for."""

import pytest
import torch

import dswag
from dswag.data import datasets
from dswag.evaluation.metrics import score
from dswag.lab.experiments.recipe import Recipe, build

SEEDS = range(3)


@pytest.fixture(scope="module")
def scores():
    """Mean NLL and accuracy over the seeds, of the phase-1 model, the mean model and DSWAG, on mnist5k."""
    test = datasets.load("mnist5k").test
    found = []
    for seed in SEEDS:
        experiment = build(Recipe(seed=seed))
        model, engine = experiment.model, experiment.engine
        run = dswag.train(model, [], experiment.recipe, engine=engine)
        predictions = [
            dswag.ensemble(model, run.theta[None], test.inputs),
            dswag.predictive(model, run.posterior, test.inputs, kind="mean"),
            dswag.predictive(model, run.posterior, test.inputs, samples=experiment.recipe.samples),
        ]
        outcomes = [score(prediction.probabilities, test.targets) for prediction in predictions]
        found.append([[outcome.nll, outcome.accuracy] for outcome in outcomes])
    return torch.tensor(found).mean(0)


def test_dswag_has_a_lower_nll_than_the_phase_1_model_and_the_mean_model(scores):
    phase_1, mean, dswag_nll = scores[:, 0].tolist()
    assert dswag_nll < mean < phase_1


def test_dswag_is_no_less_accurate(scores):
    phase_1, _, dswag_accuracy = scores[:, 1].tolist()
    assert dswag_accuracy >= phase_1 - 0.005  # five of 1,000 test digits
