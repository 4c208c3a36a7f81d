"""A run's landscape against a loop in float64 over a dense covariance, and when there is one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dswag.client import batch_norm
from dswag.core.parameters import Layout
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data.datasets import ImageDataset
from dswag.data.examples import Examples
from dswag.engines.in_process import InProcess
from dswag.lab.experiments.loss_landscape import AT, MOST_WEIGHTS, points, survey
from dswag.lab.experiments.recipe import Experiment, Recipe
from dswag.lab.models import Normalize
from dswag.posterior.gaussian import GaussianPosterior

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def experiment_with(*layers, **settings):
    """Two clients with 30 images of 2 x 2 pixels each."""
    images = torch.randint(0, 256, (60, 1, 2, 2), generator=generator_for(0), dtype=torch.uint8)
    examples = Examples(images, torch.arange(60) % 3)
    dataset = ImageDataset("small", examples, examples[:9], ("a", "b", "c"), (0.5,), (0.25,))
    model = nn.Sequential(Normalize(dataset.mean, dataset.std), nn.Flatten(), *layers)
    parts = list(torch.arange(60).split(30))
    engine = InProcess(model, [examples[part] for part in parts], workers=1)
    return Experiment(Recipe(clients=2, **settings), dataset, model, engine, parts)


@pytest.fixture
def experiment():
    with DrawFrom(generator_for(1)):
        return experiment_with(nn.Linear(4, 3))


@pytest.fixture
def normalizing():
    with DrawFrom(generator_for(1)):
        return experiment_with(nn.Linear(4, 3), nn.BatchNorm1d(3))


def posterior_of(experiment, columns=5):
    """Around the model's own weights, as wide as they are."""
    layout, generator = Layout.of(experiment.model), generator_for(2)
    deviations = torch.randn(columns, layout.d, generator=generator)
    variance = torch.rand(layout.d, generator=generator)
    mean = layout.flatten(experiment.model)
    return GaussianPosterior(mean, variance, deviations - deviations.mean(0), count=5, layout=layout)


def loss_at(experiment, theta, examples):
    """Mean cross-entropy in float64, BatchNorm statistics those of all clients' examples."""
    model = experiment.model
    before = Layout.of(model).flatten(model)
    Layout.of(model).write(theta, model)
    batch_norm.update(model, [experiment.dataset.train.inputs])
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(examples.inputs).double(), examples.targets)
    Layout.of(model).write(before, model)
    return float(loss)


@pytest.mark.parametrize("kind", ["experiment", "normalizing"])
def test_it_is_the_loss_at_so_many_standard_deviations(kind, request):
    experiment = request.getfixturevalue(kind)
    posterior, examples = posterior_of(experiment), experiment.dataset.train
    d = len(posterior.mean)
    theta = posterior.mean + torch.linspace(-1, 1, d)
    found = survey(experiment, posterior, theta)
    values, vectors = torch.linalg.eigh(posterior.covariance(range(d)))
    steps = [value.sqrt() * vector for value, vector in zip(values.flip(0), vectors.T.flip(0), strict=True)]
    steps = [step * step[step.abs().argmax()].sign() for step in steps[:4]]
    around = found.surroundings
    assert found.num_examples == len(examples)
    assert around.eigenvalues == pytest.approx(values.flip(0)[:4].tolist(), rel=1e-5)
    assert around.total_variance == pytest.approx(float(values.sum()), rel=1e-6)
    for step, line in zip(steps, around.lines["train"], strict=True):
        expected = [loss_at(experiment, (posterior.mean + x * step).float(), examples) for x in AT]
        assert line == pytest.approx(expected, rel=1e-3)  # eigenvectors are found to 1e-4, weights are rounded
    (plane,) = around.planes
    for y, row in zip(AT, plane.loss, strict=True):
        expected = [loss_at(experiment, (posterior.mean + x * steps[0] + y * steps[1]).float(), examples) for x in AT]
        assert row == pytest.approx(expected, rel=1e-3)
    for name, offsets in {"phase-1 model": (theta - posterior.mean)[None], "snapshots": posterior.deviations}.items():
        expected = [[float(offset.double() @ step / (step @ step)) for step in steps] for offset in offsets]
        torch.testing.assert_close(torch.tensor(found.places[name]), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_batch_norm_statistics_are_of_about_as_many_examples_as_the_loss(normalizing):
    asked = []

    class Watching:
        num_clients = 2
        batch_norm_layers = normalizing.engine.batch_norm_layers

        def answers(self, payload, tasks):
            asked.extend(task.max_examples for task in tasks)
            return normalizing.engine.answers(payload, tasks)

        def combine(self, fold, failure=None):
            pass

    posterior = posterior_of(normalizing, columns=2)
    for number, own, expected in ((20, None, 10), (1, None, 2), (20, 7, 7)):
        recipe = replace(normalizing.recipe, landscape_examples=number, batch_norm_examples=own)
        survey(replace(normalizing, engine=Watching(), recipe=recipe), posterior, posterior.mean)
        assert set(asked) == {expected}
        assert len(asked) == 2 * points(normalizing.recipe, posterior)
        asked.clear()


@pytest.mark.parametrize(("columns", "lines", "planes"), [(2, 1, 0), (3, 2, 1), (4, 3, 1), (9, 4, 1)])
def test_columns_have_a_direction_less_and_two_directions_a_plane(experiment, columns, lines, planes):
    posterior, counted = posterior_of(experiment, columns), []
    found = survey(experiment, posterior, posterior.mean, lambda: counted.append(None)).surroundings
    assert (len(found.eigenvalues), len(found.lines["train"]), len(found.planes)) == (lines, lines, planes)
    assert len(counted) == points(experiment.recipe, posterior) == 9 * lines + 81 * planes


@pytest.mark.parametrize("what", ["no columns", "no spread", "no examples"])
def test_where_there_is_nothing_to_measure_no_point_is(experiment, what):
    posterior = posterior_of(experiment)
    assert points(experiment.recipe, posterior)
    match what:
        case "no columns":
            posterior = replace(posterior, deviations=posterior.deviations[:0])
        case "no spread":
            still = torch.zeros_like(posterior.variance)
            posterior = replace(posterior, variance=still, deviations=0 * posterior.deviations)
        case _:
            experiment = replace(experiment, recipe=replace(experiment.recipe, landscape_examples=0))
    assert points(experiment.recipe, posterior) == 0


def test_as_many_directions_as_weights_that_move(experiment):
    posterior = posterior_of(experiment)
    moving = torch.zeros_like(posterior.variance)
    moving[[3, 7]] = 1.0
    posterior = replace(posterior, variance=posterior.variance * moving, deviations=posterior.deviations * moving)
    found = survey(experiment, posterior, posterior.mean).surroundings
    assert len(found.eigenvalues) == 2
    assert sum(found.eigenvalues) == pytest.approx(found.total_variance, rel=1e-6)


def test_models_of_more_than_a_million_weights_are_measured_when_asked_to(experiment):
    def of(d):
        return GaussianPosterior(torch.zeros(d), torch.ones(d), torch.ones(2, d), count=2)

    asked = replace(experiment, recipe=replace(experiment.recipe, landscape_examples=10))
    assert points(experiment.recipe, of(MOST_WEIGHTS)) == 9
    assert points(experiment.recipe, of(MOST_WEIGHTS + 1)) == 0
    assert points(asked.recipe, of(MOST_WEIGHTS + 1)) == 9


def test_principal_columns_are_no_snapshots_less_the_mean(experiment):
    posterior = posterior_of(experiment)
    principal = replace(experiment, recipe=experiment.recipe.replaced(columns="svd"))
    assert list(survey(experiment, posterior, posterior.mean).places) == ["phase-1 model", "snapshots"]
    assert list(survey(principal, posterior, posterior.mean).places) == ["phase-1 model"]
