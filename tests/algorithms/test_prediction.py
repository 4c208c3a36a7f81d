"""Algorithm 2 against a slow loop, and what its uncertainties promise."""

import math
from dataclasses import replace
from itertools import cycle
from weakref import WeakSet

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dswag import (
    Config,
    GaussianPosterior,
    InProcess,
    Layout,
    ensemble,
    predict,
    predictive,
    predictive_stream,
    regression,
    train,
)
from dswag.algorithms import prediction
from dswag.algorithms.prediction import average, draws_of
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data import batches
from dswag.data.batches import AHEAD


def around(model, *, spread=0.3, k=3, seed=0):
    """A posterior around the model's weights."""
    layout = Layout.of(model)
    theta = layout.flatten(model)
    generator = generator_for(seed)
    return GaussianPosterior(
        mean=theta,
        variance=spread**2 * torch.rand(len(theta), generator=generator),
        deviations=spread * torch.randn(k, len(theta), generator=generator),
        count=k,
        layout=layout,
    )


def inputs(n=17, seed=9):
    return torch.randn(n, 6, generator=generator_for(seed))


def slow_algorithm_2(model, thetas, x, statistics=None):
    """Lines 1-6 with the draws given: float64, one after another."""
    layout = Layout.of(model)
    probabilities = torch.zeros(len(x), 3, dtype=torch.float64)
    entropy = torch.zeros(len(x), dtype=torch.float64)
    for i, theta in enumerate(thetas):  # l. 1
        w1, b1, *scale_and_shift, w2, b2 = (v.double() for v in layout.views(theta).values())
        hidden = x.double() @ w1.T + b1
        if statistics is not None:
            mean, variance = statistics[i]  # l. 3
            hidden = (hidden - mean) / (variance + 1e-5).sqrt() * scale_and_shift[0] + scale_and_shift[1]
        p = (hidden.tanh() @ w2.T + b2).softmax(1)
        probabilities += p / len(thetas)  # l. 4
        entropy -= (p * p.log()).sum(1) / len(thetas)
    return probabilities, entropy  # l. 6


@pytest.mark.parametrize("kind", ["swag", "diagonal", "low_rank"])
def test_algorithm_2_agrees_with_the_slow_reference(make_model, kind):
    model, x = make_model(), inputs()
    posterior = around(model)
    result = predictive(model, posterior, x, samples=7, seed=3, kind=kind, scale=0.5, batch_size=5)
    thetas = posterior.sample(3, 7, kind=kind, scale=0.5)
    probabilities, expected_entropy = slow_algorithm_2(model, thetas, x)
    close = {"rtol": 1e-5, "atol": 1e-6}  # float32 logits of size one
    torch.testing.assert_close(result.probabilities.double(), probabilities, **close)
    torch.testing.assert_close(result.expected_entropy.double(), expected_entropy, **close)
    torch.testing.assert_close(result.entropy.double(), -(probabilities * probabilities.log()).sum(1), **close)
    assert torch.equal(predict(model, posterior, x, samples=7, seed=3, kind=kind, scale=0.5), result.probabilities)
    each = torch.stack([slow_algorithm_2(model, theta[None], x)[0] for theta in thetas])
    torch.testing.assert_close(result.variance.double(), each.var(0, correction=0), rtol=1e-3, atol=1e-6)


def test_disagreement_of_nearly_equal_draws_keeps_its_digits():
    """Against float64 throughout: weights that differ by 1e-4 move probabilities less than float32 can tell squared."""
    model, x = linear(outputs=3), inputs(200)
    posterior = around(model, spread=1e-4)
    result = predictive(model, posterior, x, samples=20, batch_size=50)
    views = [posterior.layout.views(theta.double()) for theta in posterior.sample(0, 20)]
    each = torch.stack([(x.double() @ view["weight"].T + view["bias"]).softmax(1) for view in views])
    variance, expected_entropy = each.var(0, correction=0), torch.special.entr(each).sum(2).mean(0)
    mutual_information = torch.special.entr(each.mean(0)).sum(1) - expected_entropy
    assert mutual_information.max() < 1e-7
    # logits of float32 are off by up to 1e-7, draws differ by 1e-4
    torch.testing.assert_close(result.variance.double(), variance, rtol=0.01, atol=0)
    torch.testing.assert_close(result.mutual_information.double(), mutual_information, rtol=0.01, atol=0)


def test_batch_norm_is_refreshed_for_every_draw_from_all_clients(make_model, make_clients):
    """The layer's statistics are those of its inputs over the union of the clients' data, under that draw's weights."""
    model, clients, x = make_model(batch_norm=True), make_clients(), inputs()
    posterior = around(model)
    everything = torch.cat([client.inputs for client in clients]).double()
    thetas = posterior.sample(1, 4)
    statistics = []
    for theta in thetas:
        w1, b1 = (theta.double() for theta in list(Layout.of(model).views(theta).values())[:2])
        hidden = everything @ w1.T + b1
        statistics.append((hidden.mean(0), hidden.var(0, unbiased=True)))
    expected, _ = slow_algorithm_2(model, thetas, x, statistics)
    got = predict(model, posterior, x, samples=4, seed=1, engine=InProcess(model, clients))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_fewer_examples_can_refresh_batch_norm(make_model, make_clients):
    model, clients, x = make_model(batch_norm=True), make_clients((400, 500)), inputs()
    posterior, engine = around(model), InProcess(model, clients)
    every, some = (
        predict(model, posterior, x, samples=4, engine=engine, batch_norm_examples=most) for most in (None, 100)
    )
    assert not torch.equal(every, some)
    # 200 of 900 examples: the statistics' standard errors are about 7 %, and probabilities move less than logits.
    torch.testing.assert_close(every, some, rtol=0, atol=0.2)


def test_passes_in_bfloat16_round_what_they_compute_and_no_more(make_model, make_clients):
    """Statistics and outputs of two layers with 8 binary digits: each rounds by at most 2^-8 of what it adds up."""
    model, engine, x = make_model(batch_norm=True), InProcess(make_model(batch_norm=True), make_clients()), inputs()
    members = {
        precision: draws_of(model, around(model), samples=4, engine=engine, precision=precision)
        for precision in ("float32", "bfloat16")
    }
    for i in range(4):
        exact, rounded = (members[precision].payload(i) for precision in ("float32", "bfloat16"))
        assert torch.equal(exact["theta"], rounded["theta"])
        assert not torch.equal(exact["buffer.1.running_mean"], rounded["buffer.1.running_mean"])
        deviation = exact["buffer.1.running_var"].sqrt()
        assert ((exact["buffer.1.running_mean"] - rounded["buffer.1.running_mean"]).abs() < 2**-6 * deviation).all()
    exact, rounded = (average(model, members[precision], x).probabilities for precision in ("float32", "bfloat16"))
    torch.testing.assert_close(exact, rounded, rtol=0, atol=2**-5)
    assert not torch.equal(exact, rounded)
    unrefreshed = average(model, replace(members["bfloat16"], precision="float32"), x).probabilities
    assert not torch.equal(unrefreshed, rounded)


def test_batch_norm_without_an_engine_is_refused(make_model):
    model = make_model(batch_norm=True)
    with pytest.raises(ValueError, match=r"has layers with running statistics, such as BatchNorm.*pass engine="):
        predict(model, around(model), inputs())


def test_the_mean_kind_predicts_with_the_mean(make_model, make_clients):
    model, x = make_model(), inputs()
    posterior = around(model)
    result = predictive(model, posterior, x, kind="mean")
    posterior.mean_into(model)
    with torch.no_grad():
        torch.testing.assert_close(result.probabilities, model(x).softmax(1))
    assert torch.equal(result.mutual_information, torch.zeros(len(x)))


def test_an_ensemble_averages_its_members(make_model, make_clients):
    model, x = make_model(batch_norm=True), inputs()
    engine = InProcess(model, make_clients())
    thetas = around(model).sample(0, 3)
    together = ensemble(model, thetas, x, engine=engine).probabilities
    alone = [ensemble(model, theta[None], x, engine=engine).probabilities for theta in thetas]
    torch.testing.assert_close(together, sum(alone) / 3)


def test_uncertainty_is_bounded_and_adds_up(make_model):
    result = predictive(make_model(), around(make_model(), spread=2.0), inputs(200), samples=20)
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(200))
    assert (result.entropy <= math.log(3) + 1e-6).all()
    assert (result.mutual_information >= 0).all()
    torch.testing.assert_close(result.entropy, result.expected_entropy + result.mutual_information, atol=1e-6, rtol=0)
    assert result.mutual_information.max() > 0.1


def test_certain_predictions_have_entropy_zero_not_nan():
    """Probabilities of exactly 0 and 1 are what saturated logits give."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e4], [-1e4]]))
    result = predictive(
        model, GaussianPosterior(*around(model, spread=0.0).tensors().values(), count=3), torch.ones(2, 1)
    )
    assert torch.equal(result.entropy, torch.zeros(2))
    assert torch.equal(result.mutual_information, torch.zeros(2))


def test_predictions_are_the_same_for_any_number_of_threads(make_model):
    model, x = make_model(dropout=0.5), inputs()
    posterior, before = around(model), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = predict(model, posterior, x, samples=9)
        torch.set_num_threads(3)
        assert torch.equal(predict(model, posterior, x, samples=9), one)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_model_is_left_as_it_was(make_model, make_clients):
    model = make_model(batch_norm=True, dropout=0.5)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, around(model), inputs(), engine=InProcess(model, make_clients()), samples=2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Scaled(nn.Module):
    """Computes with a buffer that no training changes, and counts with another."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("scale", torch.ones(6))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.linear(self.scale * x)


def test_draws_are_predicted_with_the_models_own_buffers():
    model, x = Scaled(), inputs()
    model.scale.fill_(0.5)
    posterior = around(model)
    found = predict(model, posterior, x, samples=4)
    views = [posterior.layout.views(theta) for theta in posterior.sample(0, 4)]
    members = [(0.5 * x @ view["linear.weight"].T + view["linear.bias"]).softmax(1) for view in views]
    torch.testing.assert_close(found, sum(members) / 4)
    with posterior.sampled(model, seed=0):
        torch.testing.assert_close(model(x).softmax(1), members[0])
    assert model.calls == 1


def test_inputs_may_come_from_a_loader(make_model):
    model, x = make_model(), inputs()
    posterior = around(model)
    expected = predict(model, posterior, x, samples=3)
    pairs = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=4)
    torch.testing.assert_close(predict(model, posterior, pairs, samples=3), expected)
    torch.testing.assert_close(predict(model, posterior, list(x.split(4)), samples=3), expected)


class Watched:
    """Batches that are made when they are asked for; `most` is how many were alive at a time."""

    def __init__(self, batches):
        self.batches, self.alive, self.most = batches, WeakSet(), 0

    def __iter__(self):
        for batch in self.batches:
            copy = batch.clone()
            self.alive.add(copy)
            self.most = max(self.most, len(self.alive))
            yield copy
            del copy


def test_a_few_batches_of_a_loader_are_held_at_a_time(make_model):
    model, x = make_model(), inputs(60)
    posterior, watched = around(model), Watched(x.split(2))
    assert len(watched.batches) > 3 * AHEAD
    probabilities = predict(model, posterior, watched, samples=3)
    assert watched.most <= AHEAD + 1  # one more while the last group goes
    torch.testing.assert_close(probabilities, predict(model, posterior, x, samples=3))


@pytest.mark.parametrize("kind", ["swag", "mean"])
def test_a_stream_gives_each_batch_what_all_together_are_given(make_model, kind):
    model, x = make_model(), inputs(2 * AHEAD + 5)
    posterior = replace(around(model), temperature=1.5)
    sizes = [1, 3] * 4 + [1] * 5
    stream = predictive_stream(model, posterior, iter(x.split(sizes)), samples=3, seed=2, kind=kind)
    together = predictive(model, posterior, x, samples=3, seed=2, kind=kind)
    for result, *expected in zip(stream, *(t.split(sizes) for t in together.tensors()), strict=True):
        torch.testing.assert_close(result.tensors(), tuple(expected))


def test_a_stream_cuts_a_tensor_into_batches(make_model):
    model, x = make_model(), inputs(10)
    stream = list(predictive_stream(model, around(model), x, samples=2, batch_size=4))
    assert [len(result.entropy) for result in stream] == [4, 4, 2]
    together = predict(model, around(model), x, samples=2)
    torch.testing.assert_close(torch.cat([result.probabilities for result in stream]), together)


def test_an_array_of_inputs_is_read_as_a_tensor(make_model):
    model, x = make_model(), inputs()
    of_array = predict(model, around(model), x.numpy(), samples=2)
    assert torch.equal(of_array, predict(model, around(model), x, samples=2))


def test_a_data_set_is_cut_into_batches_without_the_global_generator(make_model):
    model, x = make_model(), inputs()
    before = torch.get_rng_state()
    for dataset in (TensorDataset(x), TensorDataset(x, torch.zeros(len(x)))):
        of_dataset = predict(model, around(model), dataset, samples=2, batch_size=5)
        torch.testing.assert_close(of_dataset, predict(model, around(model), x, samples=2, batch_size=5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("given", [{"inputs": inputs()}, "images.npy"])
def test_what_is_no_batches_is_refused_before_the_model_sees_it(make_model, given):
    with pytest.raises(TypeError, match=rf"inputs must be a tensor, .* got {type(given).__name__}: put what is one"):
        predict(make_model(), around(make_model()), given)


def test_a_batch_may_be_whatever_the_model_takes():
    class OfDictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear(outputs=2)

        def forward(self, batch):
            return self.linear(batch["left"] + batch["right"])

    model, x = OfDictionary(), inputs()
    expected = predict(model.linear, around(model.linear), 2 * x, samples=2)
    posterior = replace(around(model.linear), layout=Layout.of(model))
    torch.testing.assert_close(predict(model, posterior, [{"left": x, "right": x}], samples=2), expected)


def test_a_stream_of_predictions_goes_on_for_ever(make_model):
    model, x = make_model(), inputs(4)
    stream = predictive_stream(model, around(model), cycle([x]), samples=2)
    first = next(stream)
    assert all(torch.equal(next(stream).probabilities, first.probabilities) for _ in range(2 * AHEAD))


def test_regressions_read_a_loader_a_few_batches_at_a_time():
    model, x = linear(), inputs(2 * AHEAD + 5)
    posterior, watched = around(model), Watched(x.split(1))
    result = regression(model, posterior, watched, noise=0.25, samples=3)
    assert watched.most <= AHEAD + 1
    torch.testing.assert_close(result.variance, regression(model, posterior, x, noise=0.25, samples=3).variance)


@pytest.mark.parametrize("nothing", [torch.zeros(0, 6), []])
def test_no_inputs_are_refused(make_model, nothing):
    with pytest.raises(ValueError, match="there are no inputs to predict"):
        predict(make_model(), around(make_model()), nothing)
    with pytest.raises(ValueError, match="there are no inputs to predict"):
        next(predictive_stream(make_model(), around(make_model()), nothing))


def test_no_samples_are_refused(make_model):
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        predict(make_model(), around(make_model()), inputs(), samples=0)


def test_a_posterior_for_another_model_is_refused(make_model):
    with pytest.raises(ValueError, match=r"θ must have shape \[53\] for these parameters, got \[8\]"):
        predict(make_model(), around(nn.Linear(3, 2)), inputs())


def test_a_model_without_logits_is_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    model = Pair(6, 3)
    with pytest.raises(ValueError, match=r"must return logits \[b, c\] to predict classes, got tuple"):
        predict(model, around(model), inputs())


def test_a_posterior_and_statistics_fit_the_model_with_and_without_a_wrapper(make_model, make_clients):
    model, x = make_model(batch_norm=True), inputs()
    config = Config(clients=3, rounds=1, explore_epochs=1)
    plain, wrapped = (train(m, make_clients(), config) for m in (model, nn.DataParallel(model)))
    assert torch.equal(wrapped.posterior.mean, plain.posterior.mean)
    expected = predict(model, plain.posterior, x, samples=2, engine=plain.engine)
    for m in (model, nn.DataParallel(model)):
        assert torch.equal(predict(m, plain.posterior, x, samples=2, engine=wrapped.engine), expected)


# Regression


def linear(*, outputs=1):
    with DrawFrom(generator_for(5)):
        return nn.Linear(6, outputs)


def test_regression_has_the_mean_and_variance_of_the_mixture():
    """Against the closed form over the same draws, in float64."""
    model, x = linear(outputs=2), inputs()
    posterior = around(model)
    result = regression(model, posterior, x, noise=0.25, samples=9, seed=4, batch_size=5)
    predicted = []
    for theta in posterior.sample(4, 9).double():
        weight, bias = theta[:12].view(2, 6), theta[12:]
        predicted.append(x.double() @ weight.T + bias)
    stacked = torch.stack(predicted)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(result.mean.double(), stacked.mean(0), **close)
    torch.testing.assert_close(result.model_variance.double(), stacked.var(0, correction=0), **close)
    torch.testing.assert_close(result.variance.double(), stacked.var(0, correction=0) + 0.25, **close)


def test_the_variance_of_a_linear_model_is_that_of_its_weights():
    """As x Σ xᵀ: 5 standard errors of a variance estimated from 4,000 draws."""
    model, x = linear(), inputs(5)
    posterior = around(model)
    result = regression(model, posterior, x, noise=0.0, samples=4000)
    v, f = posterior.factors()
    features = torch.cat([x, torch.ones(5, 1)], 1)
    exact = (features @ (torch.diag(v) + f.T @ f) @ features.T).diagonal()
    torch.testing.assert_close(result.variance[:, 0], exact, rtol=5 * (2 / 4000) ** 0.5, atol=0)


class WithNoise(nn.Module):
    """Predicts a mean and a variance."""

    def __init__(self):
        super().__init__()
        self.mean = linear()

    def forward(self, x):
        return self.mean(x), 0.1 + x[:, :1] ** 2


def test_a_model_may_predict_its_own_noise():
    model, x = WithNoise(), inputs()
    result = regression(model, around(model), x, samples=5)
    torch.testing.assert_close(result.noise_variance, 0.1 + x[:, :1] ** 2)


def test_noise_that_the_weights_predict_is_averaged_over_the_draws():
    """By the law of total variance, with the draws one by one in float64."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear(outputs=2)

        def forward(self, x):
            mean, log_variance = self.linear(x).chunk(2, 1)
            return mean, log_variance.exp()

    model, x = Both(), inputs()
    posterior = around(model)
    result = regression(model, posterior, x, samples=6, seed=2)
    views = [posterior.layout.views(theta.double()) for theta in posterior.sample(2, 6)]
    each = torch.stack([x.double() @ view["linear.weight"].T + view["linear.bias"] for view in views])
    torch.testing.assert_close(result.noise_variance.double(), each[..., 1:].exp().mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(result.mean.double(), each[..., :1].mean(0), rtol=1e-5, atol=1e-6)


def test_noise_that_is_missing_or_negative_is_refused():
    model = linear()
    with pytest.raises(ValueError, match=r"pass noise=\.\.\., the variance of the targets"):
        regression(model, around(model), inputs())
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        regression(model, around(model), inputs(), noise=-1.0)


@pytest.mark.parametrize("samples", [1, 3, 7, 10, 23, 49])
def test_no_probability_exceeds_one_however_many_are_averaged(samples):
    """Ten tenths of 1 add up to 1.0000001 in float32, which torchmetrics takes for a logit, and all others with it."""
    model = nn.Linear(6, 4)
    with torch.no_grad():
        model.weight.mul_(100)
        model.bias.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))
    posterior, x = around(model, spread=1e-3), inputs(40)
    thetas = posterior.sample(0, samples)
    found = [
        predict(model, posterior, x, samples=samples, seed=0),
        ensemble(model, thetas, x).probabilities,
        *(result.probabilities for result in predictive_stream(model, posterior, x.split(7), samples=samples)),
    ]
    assert all((probabilities.amax(1) == 1).all() for probabilities in found)
    assert all(probabilities.max() <= 1 for probabilities in found)
    assert sum(torch.ones(10) / 10 for _ in range(10)).max() > 1  # what is avoided


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_posterior_scaled_to_nothing_predicts_with_one_set_of_weights(make_model, make_clients, batch_norm):
    """What draws that all equal the mean would give, once instead of thirty times."""
    model, clients = make_model(batch_norm=batch_norm), make_clients()
    run = train(model, clients, Config(clients=3, rounds=2))
    flat = replace(run.posterior, within_scale=0.0, between_scale=0.0)
    options = {"engine": run.engine}
    assert draws_of(model, flat, **options).count == draws_of(model, run.posterior, scale=0.0, **options).count == 1
    inputs = clients[0].inputs
    expected = predict(model, run.posterior, inputs, kind="mean", **options)
    assert torch.equal(predict(model, flat, inputs, **options), expected)


# ------------------------------------------------------------------------------------------------------ bounded memory


def test_a_long_tensor_goes_through_groups_that_fit_and_gives_the_same_bits(make_model, monkeypatch):
    model = make_model()
    posterior, x = around(model), torch.randn(200, 6)
    expected = predictive(model, posterior, list(x.split(10)), samples=3)
    sizes = []

    def recording(inputs, batch_size, room):
        for group in batches.groups(inputs, batch_size, room):
            sizes.append(len(group))
            yield group

    monkeypatch.setattr(prediction, "groups", recording)
    monkeypatch.setattr(prediction, "ROOM", 3 * (2 * 2 + 6) * 10 * 3 * 8)  # three batches [10, 3] of float64
    found = predictive(model, posterior, x, samples=3, batch_size=10, workers=2)
    assert sizes == [3] * 6 + [2]
    assert all(map(torch.equal, found.tensors(), expected.tensors()))
    sizes.clear()
    streamed = prediction.predictive_stream(model, posterior, x, samples=3, batch_size=10, workers=2)
    assert torch.equal(torch.cat([part.probabilities for part in streamed]), expected.probabilities)
    assert max(sizes) == 3


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_predictions_do_not_depend_on_the_workers(workers, make_model):
    model, x = make_model(), torch.randn(30, 6)
    found = predictive(model, around(model), x, samples=4, workers=workers).probabilities
    assert torch.equal(found, predictive(model, around(model), x, samples=4).probabilities)


def test_no_workers_are_refused(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        predictive(model, around(model), torch.randn(3, 6), workers=0)
