"""Calibration picks the scales and the temperature that a slow search over the same grid picks."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from dswag import Config, GaussianPosterior, InProcess, Layout, calibrate, ensemble, predict, predictive, train
from dswag.algorithms import calibration
from dswag.algorithms.calibration import DRAWS, TEMPERATURES
from dswag.algorithms.training import evaluate
from dswag.client.calibration import CalibrateResult, Gains, SummedGains
from dswag.core.randomness import DrawFrom, derive_seed, generator_for
from dswag.data import datasets
from dswag.data.holdout import split
from dswag.data.partition import dirichlet

CONFIG = Config(clients=3, rounds=8, explore_epochs=4, snapshots_per_cycle=2, batch_size=10, holdout=0.3, seed=2)


PAIRS = ((1.0, 1.0), (0.1, 0.1), (1.0, 0.0))


@pytest.fixture(autouse=True)
def few_scales(monkeypatch):
    """A grid that a slow search gets through quickly."""
    monkeypatch.setattr(calibration, "PAIRS", PAIRS)
    monkeypatch.setattr(calibration, "SCALES", (1.0, 0.1))


def held_out(clients, config=CONFIG):
    parts = [split(data, config.holdout, derive_seed(config.seed, client))[1] for client, data in enumerate(clients)]
    return torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])


def slow_search(model, posterior, clients, engine):
    """Scales and temperature at once, by `predict` on the held-out examples of all clients together."""
    inputs, targets = held_out(clients)
    seed, n = derive_seed(CONFIG.seed, 4), len(targets)

    def losses(candidate):
        probabilities = predict(model, candidate, inputs, samples=DRAWS, seed=seed, engine=engine).double()
        return F.cross_entropy(probabilities.log(), targets, reduction="none")

    def best(scales):
        within, between = scales
        scaled = replace(posterior, within_scale=within, between_scale=between)
        found = {t: losses(replace(scaled, temperature=t)) for t in TEMPERATURES}
        cost = {t: found[t].sum() + 300 * (1 - n / 1000) * math.log(t) ** 2 for t in TEMPERATURES}
        temperature = min(cost, key=cost.get)
        return replace(scaled, temperature=temperature), found[temperature], cost[temperature]

    mean, mean_losses, mean_cost = best((0.0, 0.0))
    drawn, drawn_losses, drawn_cost = min(map(best, PAIRS), key=lambda found: found[2])
    error = (mean_losses - drawn_losses).std() / n**0.5
    return drawn if (mean_cost - drawn_cost) / n > error else mean


def test_calibration_finds_what_a_slow_search_finds(make_model, make_clients):
    model, clients = make_model(), make_clients((60, 90, 40))
    run = train(model, clients, CONFIG)
    found = []
    for loudness, spread in ((1.0, 1.0), (10.0, 1.0), (1.0, 30.0)):
        deviations, inner = spread * run.posterior.deviations, spread * run.posterior.deviations_within
        mean = loudness * run.posterior.mean
        posterior = replace(run.posterior, mean=mean, deviations=deviations, deviations_within=inner)
        fitted = calibrate(run.engine, posterior, CONFIG)
        expected = slow_search(model, posterior, clients, run.engine)
        found.append((fitted.within_scale, fitted.between_scale, fitted.temperature))
        assert found[-1] == (expected.within_scale, expected.between_scale, expected.temperature)
    assert len(set(found)) > 1


def test_scale_and_temperature_both_move_where_both_are_wrong(make_model, make_clients):
    """Columns that destroy the model, around weights too small: the scales gain more than any temperature."""
    model, clients = make_model(), make_clients((600, 900, 400))
    run = train(model, clients, CONFIG)
    drift = 3 * torch.randn(run.posterior.deviations.shape, generator=generator_for(1))
    wide = replace(
        run.posterior,
        mean=0.6 * run.posterior.mean,
        deviations=run.posterior.deviations_within + drift,
        variance=run.posterior.variance_within + drift.var(0),
    )
    fitted, expected = calibrate(run.engine, wide, CONFIG), slow_search(model, wide, clients, run.engine)
    found = (fitted.within_scale, fitted.between_scale, fitted.temperature)
    assert found == (expected.within_scale, expected.between_scale, expected.temperature)
    assert found[:2] != (1.0, 1.0)
    assert found[2] != 1.0


def test_an_overconfident_posterior_is_softened(make_model, make_clients):
    """Weights ten times too large call for a high temperature, whatever the scales."""
    model, clients = make_model(), make_clients((600, 900, 400))
    run = train(model, clients, CONFIG)
    loud = GaussianPosterior(
        10 * run.theta, 1e-8 + 0 * run.posterior.variance, 1e-4 * run.posterior.deviations, count=6
    )
    assert calibrate(run.engine, loud, CONFIG).temperature == max(TEMPERATURES)


def test_drift_between_clients_is_scaled_away(make_model, make_clients):
    """Columns along which the model is destroyed get the scale 0, while those within clients need not."""
    model, clients = make_model(), make_clients((60, 90, 40))
    run = train(model, clients, CONFIG)
    generator = generator_for(1)
    drift = 5 * torch.randn(run.posterior.deviations.shape, generator=generator)
    drifted = replace(
        run.posterior,
        deviations=run.posterior.deviations_within + drift,
        variance=run.posterior.variance_within + drift.var(0),
    )
    fitted = calibrate(run.engine, drifted, CONFIG)
    assert fitted.between_scale == 0
    inputs, targets = held_out(clients)
    before, after = (F.nll_loss(predict(model, p, inputs).log(), targets).item() for p in (drifted, fitted))
    assert after < before


def test_scales_are_those_to_draw_with_at_the_settings_own_scale(make_model, make_clients):
    """A scale of 0.1 in the settings is a covariance of a tenth."""
    model, clients = make_model(), make_clients((60, 90, 40))
    posterior = train(model, clients, CONFIG).posterior
    tensors, found = posterior.tensors(), []
    for settings, size in ((1.0, 1000.0), (0.1, 10_000.0), (0.0, 1000.0)):
        power = {"variance": 1, "variance_within": 1, "deviations": 0.5, "deviations_within": 0.5}
        large = replace(posterior, **{name: size**exponent * tensors[name] for name, exponent in power.items()})
        fitted = calibrate(InProcess(model, clients), large, replace(CONFIG, scale=settings))
        found.append((fitted.within_scale, fitted.between_scale))
    assert found[0] == found[1] == (0.0, 0.0)
    assert found[2] == (0.0, 0.0)  # the settings leave no covariance to scale


@pytest.mark.parametrize("n", [1000, 1001, 2000])
@pytest.mark.parametrize("shift", [0.99, 1.01])
def test_draws_must_gain_a_standard_error_of_the_mean(n, shift):
    """With the standard error that SciPy has, from n - 1, at the temperatures that are best for each."""
    gain = torch.randn(n, generator=generator_for(n)).double()
    gain += shift * stats.sem(gain) - gain.mean()
    rest = torch.zeros(len(TEMPERATURES) - 3, n, dtype=torch.float64) - 10
    first = torch.cat([torch.zeros(3, n, dtype=torch.float64), rest])  # gains of the mean, best at the second
    first[1] = 0.01
    draws = torch.cat([torch.zeros(3, n, dtype=torch.float64), rest])  # best at the third
    draws[2] = first[1] + gain
    losses = -torch.stack([first, draws])
    squares = torch.stack([(losses[0] - of_group[:, None]).square().sum(2) for of_group in losses])
    found = calibration._best(Gains(n, -losses.sum(2), squares))
    assert found == ((1, 2) if shift > 1 else (0, 1))


def test_a_single_held_out_example_decides_for_the_mean():
    sums = torch.tensor([[0.0] * len(TEMPERATURES), [5.0] * len(TEMPERATURES)], dtype=torch.float64)
    squares = (sums**2)[..., None].expand(-1, -1, len(TEMPERATURES))
    assert calibration._best(Gains(1, sums, squares)) == (0, 0)


@pytest.mark.parametrize(("n", "tempered"), [(50, False), (2000, True)])
def test_few_held_out_examples_keep_the_temperature_near_1(n, tempered):
    """The same small gain of each example."""
    hot = TEMPERATURES.index(2.0)
    sums = torch.full((1, len(TEMPERATURES)), -1.0 * n, dtype=torch.float64)
    sums[0, 0], sums[0, hot] = 0, 0.05 * n
    assert calibration._best(Gains(n, sums, (sums**2 / n)[..., None].expand(1, -1, len(TEMPERATURES)))) == (
        0,
        hot if tempered else 0,
    )


class Digits(nn.Sequential):
    """A small network for the digits of mnist5k."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, images):
        return super().forward(images / 255)


@pytest.mark.parametrize("concentration", [0.3, 0.1])
def test_under_label_skew_the_calibrated_posterior_is_no_worse_than_the_phase_1_model(concentration):
    """In NLL on digits, each of three seeds; plain DSWAG is worse than calibrated in all."""
    data = datasets.load("mnist5k")
    inputs, targets = data.test.inputs.float(), data.test.targets
    for seed in range(3):
        settings = Config(clients=5, rounds=8, holdout=0.1, explore_epochs=3, snapshots_per_cycle=3, seed=seed)
        parts = dirichlet(data.train.targets, 5, seed, concentration=concentration, min_examples=10)
        with DrawFrom(generator_for(seed)):
            model = Digits()
        run = train(model, [data.train[part] for part in parts], settings)
        fitted = calibrate(run.engine, run.posterior, settings)
        phase_1 = ensemble(model, run.theta[None], inputs).probabilities
        plain, calibrated = (predict(model, posterior, inputs, samples=10) for posterior in (run.posterior, fitted))
        nll = [F.nll_loss(probabilities.log(), targets).item() for probabilities in (calibrated, phase_1, plain)]
        assert nll[0] == min(nll)


def test_batch_norm_statistics_belong_to_each_candidate(make_model, make_clients):
    """A layer before which weights are wild under one scale must not be normalized by what another scale gives."""
    model, clients = make_model(batch_norm=True), make_clients((60, 90, 40))
    run = train(model, clients, CONFIG)
    wild = replace(run.posterior, deviations=300 * run.posterior.deviations)
    fitted = calibrate(run.engine, wild, CONFIG)
    expected = slow_search(model, wild, clients, run.engine)
    assert (fitted.within_scale, fitted.between_scale) == (expected.within_scale, expected.between_scale) != (1.0, 1.0)


def test_training_does_not_see_what_is_held_out(make_model, make_clients):
    """Held-out labels that change change nothing but the calibration."""
    clients = make_clients((60, 90, 40))
    altered = []
    for number, client in enumerate(clients):
        generator = generator_for(derive_seed(CONFIG.seed, number))
        rows = torch.randperm(len(client), generator=generator)[: round(CONFIG.holdout * len(client))]
        targets = client.targets.clone()
        targets[rows] = (targets[rows] + 1) % 3
        altered.append(replace(client, targets=targets))
    one, two = (train(make_model(), data, CONFIG) for data in (clients, altered))
    assert torch.equal(one.posterior.mean, two.posterior.mean)
    assert [round.loss for round in one.history] == [round.loss for round in two.history]
    fitted = [calibrate(run.engine, run.posterior, CONFIG) for run in (one, two)]
    assert fitted[0].temperature < fitted[1].temperature  # wrong labels make sharp predictions expensive


def test_a_posterior_without_a_part_within_has_one_scale(make_model, make_clients):
    """That of the whole, which columns along which the model is destroyed take to nothing."""
    model, clients, config = make_model(), make_clients((60, 90, 40)), replace(CONFIG, snapshots_per_cycle=1)
    posterior = train(model, clients, config).posterior
    assert posterior.variance_within is None
    fitted = calibrate(InProcess(model, clients), replace(posterior, deviations=1000 * posterior.deviations), config)
    assert (fitted.within_scale, fitted.between_scale) == (0.0, 0.0)


def test_scales_and_temperature_survive_a_file(tmp_path, make_model, make_clients):
    model, clients = make_model(), make_clients((60, 90, 40))
    posterior = replace(
        train(model, clients, CONFIG).posterior, within_scale=0.3, between_scale=0.03, temperature=2 ** (1 / 8)
    )
    posterior.save(tmp_path / "p")
    loaded = GaussianPosterior.load(tmp_path / "p")
    assert torch.equal(predict(model, loaded, clients[0].inputs), predict(model, posterior, clients[0].inputs))


def test_tempering_changes_no_prediction_and_no_disagreement(make_model, make_clients):
    model, clients = make_model(), make_clients()
    posterior = train(model, clients, Config(clients=3, rounds=5)).posterior
    cold, warm = (predictive(model, replace(posterior, temperature=t), clients[0].inputs) for t in (1.0, 2.0))
    assert torch.equal(cold.probabilities.argmax(1), warm.probabilities.argmax(1))
    assert torch.equal(cold.mutual_information, warm.mutual_information)
    assert (warm.entropy > cold.entropy).all()


def test_nothing_held_out_is_refused(make_model, make_clients):
    model, clients = make_model(), make_clients()
    posterior = train(model, clients, Config(clients=3, rounds=1)).posterior
    with pytest.raises(ValueError, match=r"train with holdout, such as 0\.1"):
        calibrate(InProcess(model, clients), posterior, Config(clients=3))
    with pytest.raises(ValueError, match="calibrate needs examples that training does not see: set holdout"):
        Config(calibrate=True)


def test_gains_add_up_in_any_grouping():
    ones = torch.ones(2, 3, dtype=torch.float64)
    results = [
        CalibrateResult(index=i, client=i, num_examples=i, gains=i * ones, squares=i**2 * ones) for i in range(1, 5)
    ]
    whole, left, right = SummedGains(), SummedGains(), SummedGains()
    for result in results:
        whole.add(result)
        (left if result.index < 3 else right).add(result)
    left.merge(right)
    left.merge(SummedGains())
    for gains in (whole.result(), left.result()):
        assert gains.num_examples == 10
        assert torch.equal(gains.sums, 10 * ones)
        assert torch.equal(gains.squares, 30 * ones)
    assert torch.equal(results[0].gains, ones)  # results are left as they are
    with pytest.raises(ValueError, match="no gains of no clients"):
        SummedGains().result()


def test_scales_that_cannot_be_are_refused(make_model):
    theta = Layout.of(make_model()).flatten(make_model())
    for name, value in (("within_scale", -1.0), ("between_scale", float("nan")), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            GaussianPosterior(theta, theta.abs(), theta[None][:0], count=2, **{name: value})


class Buffered(nn.Module):
    """A model whose own buffers are called as a posterior's tensors are."""

    def __init__(self):
        super().__init__()
        with DrawFrom(generator_for(3)):
            self.layer = nn.Linear(6, 3)
        for name in ("mean", "variance", "deviations", "theta"):
            self.register_buffer(name, torch.full((6,), 0.5))

    def forward(self, inputs):
        return self.layer(inputs * (self.mean + self.variance * self.deviations / self.theta))  # times 1


def test_buffers_may_be_called_as_a_posteriors_tensors(make_clients):
    """The plain layer computes the same."""
    model, clients = Buffered(), make_clients((60, 90, 40))
    run, plain = (train(each, clients, CONFIG) for each in (model, model.layer))
    assert torch.equal(run.theta, plain.theta)
    fitted, expected = (calibrate(each.engine, each.posterior, CONFIG) for each in (run, plain))
    assert (fitted.within_scale, fitted.between_scale) == (expected.within_scale, expected.between_scale)
    assert fitted.temperature == expected.temperature


def test_without_batch_norm_nothing_is_sent_for_its_statistics(make_model, make_clients):
    asked = []

    class Watching(InProcess):
        def answers(self, payload, tasks):
            asked.append({type(task).__name__ for task in tasks})
            return super().answers(payload, tasks)

    model = make_model()
    engine = Watching(model, make_clients((60, 90, 40)))
    run = train(model, (), replace(CONFIG, rounds=1), engine=engine)
    asked.clear()
    calibrate(engine, run.posterior, CONFIG)
    evaluate(engine, run.theta, CONFIG)
    assert asked == [{"CalibrateTask"}, {"EvaluateTask"}]
