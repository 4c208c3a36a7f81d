"""Ensembles, FedBE's draws, dropout and isotropic noise against closed forms and slow loops."""

import math

import pytest
import torch
from torch import nn

from dswag import GaussianPosterior, Layout
from dswag.algorithms.calibration import DRAWS
from dswag.config import Config
from dswag.core.randomness import DrawFrom, derive_seed, generator_for
from dswag.data import holdout
from dswag.data.examples import Examples
from dswag.lab.baselines import ensembles, isotropic_noise, mc_dropout
from dswag.lab.baselines.method import Problem, Trial
from dswag.lab.baselines.phases import explored

THETAS = torch.tensor([[1.0, -2.0], [3.0, 0.0], [2.0, 5.0]])
N = 20_000


def within_standard_errors(draws, mean, covariance):
    """Sample mean within 5 standard errors, sample covariance within 5 % of the largest variance."""
    errors = (draws.mean(0) - mean) / (covariance.diagonal() / len(draws)).sqrt()
    assert errors.abs().max() < 5
    assert (torch.cov(draws.T, correction=0) - covariance).abs().max() < 0.05 * covariance.diagonal().max()


@pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
def test_dirichlet_draws_have_the_covariance_of_the_weights_over_s_times_concentration_plus_1(concentration):
    draws = ensembles.dirichlet_draws(THETAS, N, seed=1, concentration=concentration)
    covariance = torch.cov(THETAS.T, correction=0) / (3 * concentration + 1)
    within_standard_errors(draws, THETAS.mean(0), covariance)


def test_gaussian_draws_have_the_variance_of_the_weights_and_no_covariance():
    draws = ensembles.gaussian_draws(THETAS, N, seed=1)
    within_standard_errors(draws, THETAS.mean(0), THETAS.var(0, correction=0).diag())


@pytest.mark.parametrize("method", [ensembles.fedbe_gaussian, ensembles.fedbe_dirichlet])
def test_fedbe_averages_over_mean_clients_and_draws(classification, method):
    """Each member's predictions one by one."""
    trial = Trial(classification())
    thetas = trial.shared(explored)
    draw = ensembles.gaussian_draws if method is ensembles.fedbe_gaussian else ensembles.dirichlet_draws
    members = [thetas.mean(0), *thetas, *draw(thetas, 5, seed=trial.prediction_seed)]
    inputs = trial.problem.clients[1].inputs
    views = [Layout.of(trial.model).views(theta) for theta in members]
    each = [torch.func.functional_call(trial.model, view, (inputs,)).softmax(1) for view in views]
    torch.testing.assert_close(method(trial)(inputs).probabilities, torch.stack(each).mean(0).detach())


def linear_network():
    with DrawFrom(generator_for(0)):
        return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))


def test_thinned_networks_predict_the_whole_one_in_the_mean_where_it_is_linear():
    model = linear_network()
    layout = Layout.of(model)
    theta = layout.flatten(model)
    inputs = torch.randn(3, 4, generator=generator_for(1))
    thetas = mc_dropout.thinned(model, theta, 4000, seed=2, probability=0.3)
    outputs = torch.stack([torch.func.functional_call(model, layout.views(t), (inputs,)) for t in thetas]).detach()
    errors = (outputs.mean(0) - model(inputs).detach()) / (outputs.std(0) / math.sqrt(4000))
    assert outputs.std(0).min() > 0.01
    assert errors.abs().max() < 5


def test_a_thinned_network_is_one_with_dropped_units():
    model = linear_network()
    layout = Layout.of(model)
    (theta,) = mc_dropout.thinned(model, layout.flatten(model), 1, seed=2, probability=0.5)
    matrix, whole = layout.views(theta)["1.weight"], model[1].weight.detach()
    kept = (matrix != 0).any(0)
    assert 0 < kept.sum() < 6
    inputs = torch.randn(3, 4, generator=generator_for(1))
    hidden = model[0](inputs) * kept / 0.5
    expected = hidden @ whole.T + model[1].bias
    found = torch.func.functional_call(model, layout.views(theta), (inputs,))
    torch.testing.assert_close(found, expected)
    assert torch.equal(
        theta[: layout.slices["1.weight"].start], layout.flatten(model)[: layout.slices["1.weight"].start]
    )


def test_dropout_is_put_before_linear_layers_that_do_not_read_the_inputs(make_model):
    model = make_model()
    copy = mc_dropout.with_dropout(model, 0.4)
    inputs = torch.randn(3, 6, generator=generator_for(1))
    assert [type(module) for module in copy[2]] == [nn.Dropout, nn.Linear]
    assert torch.equal(Layout.of(copy).flatten(copy), Layout.of(model).flatten(model))
    assert torch.equal(copy.eval()(inputs), model(inputs))
    with pytest.raises(ValueError, match="needs a linear layer that another layer with weights comes before"):
        mc_dropout.with_dropout(nn.Linear(3, 2), 0.4)


def overconfident(mean, share, clients=4, per_client=200):
    """A model of two classes with logits (θ, 0), and clients of whose examples a share is of the first class."""
    targets = torch.zeros(per_client, dtype=torch.int64)
    targets[round(share * per_client) :] = 1
    data = [Examples(torch.ones(per_client, 1), targets) for _ in range(clients)]
    model = nn.Linear(1, 2, bias=False)
    theta = torch.tensor([mean, 0.0])
    return Trial(Problem(model, data, Config(clients=clients, holdout=0.5, seed=1))), theta


@pytest.mark.parametrize(("share_of_first", "most"), [(0.78, 1.0), (0.86, 1.0)])
def test_tuned_noise_is_the_one_with_the_lowest_nll_on_held_out_examples(share_of_first, most):
    """Against a slow loop in float64, and against where E sigmoid(θ₁ - θ₂) equals the share of the first class."""
    trial, theta = overconfident(2.0, share_of_first)
    found = float(isotropic_noise.tuned(trial.engine(), theta, trial.config).variance[0].sqrt())

    parts = [
        holdout.split(data, 0.5, derive_seed(trial.config.seed, client))[1]
        for client, data in enumerate(trial.problem.clients)
    ]
    share = float(torch.cat([part.targets for part in parts]).double().mean())

    def nll(std):
        posterior = GaussianPosterior(theta, torch.full((2,), std**2), torch.empty(0, 2), count=1)
        draws = posterior.sample(derive_seed(trial.config.seed, 4), DRAWS, kind="diagonal").double()
        second = draws.softmax(1)[:, 1].mean()
        return float(-share * second.log() - (1 - share) * (1 - second).log())

    assert found == pytest.approx(min(isotropic_noise.STANDARD_DEVIATIONS, key=nll), rel=1e-6)
    assert 0.1 < found <= most
