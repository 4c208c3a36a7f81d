"""Langevin dynamics, variational inference and the posterior server on Gaussians whose posteriors are known."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from dswag import Config
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data.examples import Examples
from dswag.lab.baselines import langevin, mean_field, posterior_server
from dswag.lab.baselines.method import Problem, Trial
from dswag.lab.baselines.posterior_server import Natural, auxiliary, serve


def test_langevin_has_the_variance_of_the_posterior_whatever_the_number_of_clients(quadratic):
    """2,000 independent coordinates, n = 12 examples over 3 clients, with weight decay τ = 0.5.

    One round is θ <- (1 - a r) θ + noise with a = 1 + τ and noise of variance 2 r / n, whose stationary variance is
    that over 1 - (1 - a r)²: by a factor of 1 / (1 - a r / 2) more than the posterior's 1 / (n a).
    """
    d, rate, a = 2000, 0.1, 1.5
    trial = quadratic(
        [torch.zeros(4, d)] * 3,
        torch.zeros(d),
        rounds=1,
        explore_epochs=60,
        explore_learning_rate=rate,
        weight_decay=a - 1,
    )
    last = langevin.samples(trial, torch.zeros(d))[-1]
    expected = (2 * rate / 12) / (1 - (1 - a * rate) ** 2)
    assert expected == pytest.approx(1 / (12 * a) / (1 - a * rate / 2))
    assert float(last.square().mean()) == pytest.approx(expected, rel=5 * math.sqrt(2 / d))  # 5 standard errors
    assert abs(float(last.mean())) < 5 * math.sqrt(expected / d)


def test_a_langevin_model_is_the_model_itself_outside_training(make_model):
    model = langevin.Langevin(make_model(), noise=1.0).eval()
    inputs = torch.randn(4, 6, generator=generator_for(0))
    outputs, noise = model(inputs)
    assert torch.equal(outputs, make_model()(inputs))
    assert noise == 0


def linear_regression(*, clients=2, per_client=60, correlation=0.0, noise=0.5, **settings):
    """Clients with examples of y = x w + noise; with it Σ x xᵀ / noise² of each, and Σ x y / noise²."""
    generator = generator_for(5)
    d = 3
    mixing = torch.eye(d) + correlation * (torch.ones(d, d) - torch.eye(d))
    weights = torch.tensor([0.5, -1.0, 0.25])
    data, precisions, linears = [], [], []
    for _ in range(clients):
        x = torch.linalg.qr(torch.randn(per_client, d, generator=generator))[0] * math.sqrt(per_client) @ mixing
        y = x @ weights + noise * torch.randn(per_client, generator=generator)
        data.append(Examples(x, y[:, None]))
        precisions.append((x.T @ x).double() / noise**2)
        linears.append((x.T @ y).double() / noise**2)
    settings = {"batch_size": 20, "momentum": 0.0, "weight_decay": 0.1, **settings}
    model = nn.Linear(d, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()

    def loss(outputs, targets):
        return (outputs - targets).square().mean() / (2 * noise**2)

    trial = Trial(Problem(model, data, Config.paper(clients=clients, **settings), loss=loss))
    tau = settings["weight_decay"] * clients * per_client
    return trial, precisions, linears, tau


def test_mean_field_finds_the_best_factorised_gaussian():
    """For a Gaussian posterior N(m, Λ⁻¹) that is N(m, diag(Λ)⁻¹) (Bishop 2006, Section 10.1.2)."""
    rates = {"learning_rate": 0.05, "explore_learning_rate": 0.01, "explore_final_learning_rate": 1e-4}
    trial, precisions, linears, tau = linear_regression(
        correlation=0.3, rounds=20, local_epochs=4, explore_epochs=200, clip_gradient=1e3, **rates
    )
    found = mean_field.posterior(trial, step=0.02)
    precision = sum(precisions) + tau * torch.eye(3)
    mean = torch.linalg.solve(precision, sum(linears))
    std = precision.diagonal().rsqrt()
    assert ((found.mean.double() - mean) / std).abs().max() < 0.2
    torch.testing.assert_close(found.variance.double().sqrt() / std, torch.ones(3).double(), atol=0.1, rtol=0)


def test_the_entropy_alone_raises_log_deviations_by_a_step_a_step(monkeypatch):
    """At full speed: SGD with momentum on the entropy's part of the negative evidence lower bound by examples."""
    made = []

    class Watched(mean_field.MeanField):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(mean_field, "MeanField", Watched)
    trial, *_ = linear_regression(rounds=1, explore_epochs=2, momentum=0.8, learning_rate=0.01)
    mean_field.posterior(trial, step=0.003)
    model = made[0]
    optimizer = torch.optim.SGD(model.spread, lr=0.01, momentum=0.8)
    values = []
    for _ in range(80):
        log_std = torch.cat([model.log_std(spread).flatten() for spread in model.spread])
        values.append(log_std.detach())
        optimizer.zero_grad()
        (-log_std.sum() / model.num_examples).backward()
        optimizer.step()
    torch.testing.assert_close(values[-1] - values[-2], torch.full((3,), 0.003), rtol=1e-3, atol=0)


def test_the_kl_term_is_that_of_the_distributions(make_model):
    """Against torch.distributions."""
    model = mean_field.MeanField(make_model(), 3.0, 7, start=-1.5)
    _, divergence = model(torch.randn(2, 6, generator=generator_for(0)))
    prior = Normal(0.0, 3.0**-0.5)
    terms = [kl_divergence(Normal(p.detach(), math.exp(-1.5)), prior).sum() for p in make_model().parameters()]
    torch.testing.assert_close(divergence.detach(), sum(terms) / 7)


def test_mean_field_and_posterior_server_need_a_prior(classification):
    trial = Trial(classification(weight_decay=0.0))
    with pytest.raises(ValueError, match="needs a prior: set weight_decay"):
        mean_field.posterior(trial)
    with pytest.raises(ValueError, match="needs a prior: set weight_decay"):
        posterior_server.posterior(trial, trial.theta)


def exact_visit(sites, most, *, steps, step):
    """A visit whose moments of the tilted distributions are in closed form, those of γ · the client's own site."""

    def visit(client, cavity, posterior):
        first, second = cavity.moments
        for _ in range(steps):
            gamma = auxiliary(first, second, 1 / posterior.precision, most)
            new, tilted = (cavity + posterior - gamma).moments, (gamma + sites[client]).moments
            first, second = first + step * (new[0] - tilted[0]), second + step * (new[1] - tilted[1])
        return auxiliary(first, second, 1 / posterior.precision, most)

    return visit


def test_natural_gradient_steps_recover_the_exact_posterior_of_a_conjugate_model():
    """Bayesian linear regression over three clients; orthogonal inputs, so that the posterior is diagonal."""
    _, precisions, linears, tau = linear_regression(clients=3)
    sites = [Natural(linear, precision.diagonal()) for precision, linear in zip(precisions, linears, strict=True)]
    zero = torch.zeros(3, dtype=torch.float64)
    prior = Natural(zero, zero + tau)
    visit = exact_visit(sites, 2 / prior.precision, steps=100, step=0.1)
    found = serve(prior, [Natural(zero, zero + 1)] * 3, visit, [0, 1, 2] * 40)
    exact = sum(sites, prior)
    torch.testing.assert_close(found.precision, exact.precision, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.linear, exact.linear, rtol=1e-6, atol=0)


def test_a_step_of_sgd_in_a_visit_is_a_natural_gradient_step_and_a_langevin_step():
    scales = posterior_server.Scales(rate=0.1, step=0.02, num_examples=50)
    model = nn.Linear(3, 1, bias=False)
    weights = model.weight.detach().flatten().clone()
    tilted = posterior_server.Tilted(model, torch.full((3,), 2.0), scales)
    first, second = torch.tensor([0.2, 0.1, 0.0]), torch.tensor([0.6, 0.7, 0.8])
    given = {
        "first": first,
        "second": second,
        "anchor": torch.tensor([0.5, -0.2, 0.1]),
        "linear": torch.tensor([0.1, 0.2, -0.3]),
        "precision": torch.tensor([4.0, 5.0, 6.0]),
        "least": torch.full((3,), 0.1),
        "share": torch.tensor(0.25),
    }
    tilted.load_state_dict({**tilted.state_dict(), **given})
    inputs, targets = torch.randn(4, 3, generator=generator_for(0)), torch.ones(4, 1)
    optimizer = torch.optim.SGD(tilted.parameters(), lr=scales.rate)
    loss = posterior_server.energy(lambda outputs, y: (outputs - y).square().mean())
    with DrawFrom(generator_for(1)):
        loss(tilted(inputs), targets).backward()
    optimizer.step()

    u = weights - given["anchor"]
    variance = second - first.square()
    mean = (given["linear"] - first / variance) / (given["precision"] - 1 / variance)
    square = mean.square() + 1 / (given["precision"] - 1 / variance)
    torch.testing.assert_close(tilted.first.detach(), first + 0.02 * (mean - u))
    torch.testing.assert_close(tilted.second.detach(), second + 0.02 * (square - u.square()))
    noise = math.sqrt(2 / (0.1 * 50)) * torch.randn(3, generator=generator_for(1))
    likelihood = 2 * ((inputs @ weights[:, None] - targets) * inputs).mean(0)
    gradient = 0.25 * likelihood + (u - first) / variance / 50 + noise
    torch.testing.assert_close(model.weight.detach().flatten(), weights - 0.1 * gradient)


def test_visits_on_the_engine_follow_those_with_exact_moments(quadratic, monkeypatch):
    """200 coordinates, of which each example is an observation with variance 1; a client's own are all alike.

    The first two visits also wait for the chains, which start at the anchor.
    """
    d, per_client, step = 200, 100, 0.005
    pulls = 0.3 * torch.randn(2, d, generator=generator_for(7))
    trial = quadratic(
        [pull.repeat(per_client, 1) for pull in pulls],
        torch.zeros(d),
        batch_size=1,
        rounds=1,
        explore_epochs=4,
        explore_learning_rate=0.1,
        weight_decay=0.1,
    )
    sites = [Natural(per_client * pull.double(), torch.full((d,), 100.0, dtype=torch.float64)) for pull in pulls]
    moves, errors, precisions = [], [], []

    def watched(prior, factors, visit, order):
        exact = exact_visit(sites, 2 / prior.precision, steps=per_client, step=step)

        def both(client, cavity, posterior):
            found, expected = visit(client, cavity, posterior), exact(client, cavity, posterior)
            moves.append((expected.moments[0] - cavity.moments[0]).square().mean())
            errors.append((found.moments[0] - expected.moments[0]).square().mean())
            precisions.append((found.precision / expected.precision).mean())
            return found

        return serve(prior, factors, both, order)

    monkeypatch.setattr(posterior_server, "serve", watched)
    posterior_server.posterior(trial, torch.zeros(d), step=step)
    assert len(moves) == 8
    assert sum(errors) < 0.1 * sum(moves)
    torch.testing.assert_close(torch.stack(precisions), torch.ones(8).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(torch.stack(precisions[2:]), torch.ones(6).double(), atol=0.02, rtol=0)
