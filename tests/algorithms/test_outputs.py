"""Algorithm 2 for outputs other than [n, c]: tokens, pixels, yes-or-no labels; and for draws that overflow."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dswag
from dswag.core.randomness import DrawFrom, generator_for
from dswag.evaluation.metrics import score

N, S = 9, 5


def linear(outputs=12):
    with DrawFrom(generator_for(5)):
        return nn.Linear(6, outputs)


def around(model, *, spread=0.3, link=None):
    layout = dswag.Layout.of(model)
    theta, generator = layout.flatten(model), generator_for(0)
    return dswag.GaussianPosterior(
        mean=theta,
        variance=spread**2 * torch.rand(len(theta), generator=generator),
        deviations=spread * torch.randn(3, len(theta), generator=generator),
        count=3,
        layout=layout,
        link=link,
    )


def inputs(n=N):
    return torch.randn(n, 6, generator=generator_for(9))


def logits_of_draws(model, posterior, x):
    """[s, n, 12] in float64, one draw after another."""
    views = [posterior.layout.views(theta.double()).values() for theta in posterior.sample(0, S)]
    return torch.stack([x.double() @ weight.T + bias for weight, bias in views])


@pytest.mark.parametrize(
    ("shape", "options", "axis"),
    [
        ((4, 3), {}, 2),  # [n, t, c]
        ((4, 3), {"class_axis": -1}, 2),
        ((4, 3), {"class_axis": 1}, 1),  # [n, c, t]
        ((3, 2, 2), {}, 1),  # [n, c, h, w]
        ((2, 2, 3), {"class_axis": -1}, 3),
    ],
)
def test_classes_are_predicted_along_their_axis(shape, options, axis):
    """Probabilities, entropies and variance against the draws one by one."""
    model, x = nn.Sequential(linear(), nn.Unflatten(1, shape)), inputs()
    posterior = around(model)
    result = dswag.predictive(model, posterior, x, samples=S, batch_size=4, **options)
    each = logits_of_draws(model, posterior, x).view(S, N, *shape).softmax(axis + 1)
    close = {"rtol": 1e-5, "atol": 1e-6}
    entropy = torch.special.entr(each.mean(0)).sum(axis)
    expected = torch.special.entr(each).sum(axis + 1).mean(0)
    torch.testing.assert_close(result.probabilities.double(), each.mean(0), **close)
    torch.testing.assert_close(result.variance.double(), each.var(0, correction=0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(result.expected_entropy.double(), expected, **close)
    torch.testing.assert_close(result.entropy.double(), entropy, **close)
    torch.testing.assert_close(result.mutual_information.double(), entropy - expected, rtol=1e-3, atol=1e-6)
    targets = torch.zeros(result.entropy.shape, dtype=torch.int64)
    assert score(result.probabilities, targets).num_examples == targets.numel()
    warm = dswag.predictive(model, replace(posterior, temperature=3.0), x, samples=S, **options)
    torch.testing.assert_close(warm.probabilities.sum(axis), torch.ones_like(warm.entropy))
    assert (warm.entropy > result.entropy).all()


@pytest.mark.parametrize("shape", [(), (1,), (12,)], ids=["[n]", "[n, 1]", "[n, labels]"])
def test_yes_or_no_labels_are_predicted_by_a_sigmoid(shape):
    sizes = {(): (nn.Linear(6, 1), nn.Flatten(0)), (1,): (nn.Linear(6, 1),), (12,): (nn.Linear(6, 12),)}
    with DrawFrom(generator_for(5)):
        model = nn.Sequential(*sizes[shape])
    x, posterior = inputs(), around(model)
    result = dswag.predictive(model, posterior, x, samples=S, link="sigmoid")
    p = logits_of_draws(model, posterior, x).view(S, N, *shape).sigmoid()
    close = {"rtol": 1e-5, "atol": 1e-6}

    def entropy(p):
        return -(p * p.log() + (1 - p) * (1 - p).log())

    torch.testing.assert_close(result.probabilities.double(), p.mean(0), **close)
    torch.testing.assert_close(result.entropy.double(), entropy(p.mean(0)), **close)
    torch.testing.assert_close(result.expected_entropy.double(), entropy(p).mean(0), **close)
    assert result.class_axis is None
    assert score(result.probabilities, torch.zeros(N, *shape)).num_examples == p[0].numel()


def test_a_single_logit_of_no_known_link_is_refused():
    for model in (linear(1), nn.Sequential(linear(1), nn.Flatten(0))):
        with pytest.raises(ValueError, match=r"single logit for each example.*link=\"sigmoid\".*dswag\.regression"):
            dswag.predict(model, around(model), inputs())


def trained(loss, targets):
    model = linear(3)
    clients = [(inputs(20), targets(20)), (inputs(30), targets(30))]
    return model, dswag.train(model, clients, dswag.Config(clients=2, rounds=2, seed=1), loss=loss)


def labels(n):
    return torch.arange(n) % 3


def several(n):
    return F.one_hot(labels(n), 3).float()


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, lambda o, t: nn.BCEWithLogitsLoss()(o, t)]
)
def test_a_model_trained_with_binary_cross_entropy_predicts_by_a_sigmoid(loss, tmp_path):
    model, run = trained(loss, several)
    expected = dswag.predict(model, replace(run.posterior, link=None), inputs(), link="sigmoid")
    assert torch.equal(dswag.predict(model, run.posterior, inputs()), expected)
    assert torch.equal(run.predictive(model, inputs()).probabilities, expected)
    run.posterior.save(tmp_path / "posterior.safetensors")
    loaded = dswag.GaussianPosterior.load(tmp_path / "posterior.safetensors")
    assert torch.equal(dswag.predict(model, loaded, inputs()), expected)
    stream = list(dswag.predictive_stream(model, loaded, inputs(), batch_size=4))
    assert torch.equal(torch.cat([batch.probabilities for batch in stream]), expected)
    phase_1 = dswag.ensemble(model, run.theta[None], inputs(), engine=run.engine)
    assert torch.equal(
        phase_1.probabilities, dswag.ensemble(model, run.theta[None], inputs(), link="sigmoid").probabilities
    )


def test_a_model_trained_with_cross_entropy_predicts_by_a_softmax():
    model, run = trained(nn.CrossEntropyLoss(label_smoothing=0.1), labels)
    assert run.posterior.link == "softmax"
    expected = dswag.predict(model, replace(run.posterior, link=None), inputs())
    assert torch.equal(dswag.predict(model, run.posterior, inputs()), expected)


def test_cross_entropy_says_that_classes_are_on_axis_1():
    """PyTorch's own takes [n, c, t]; nothing else says so of three axes."""
    model = nn.Sequential(linear(), nn.Unflatten(1, (4, 3)))
    posterior = around(model, link="softmax")
    expected = dswag.predict(model, replace(posterior, link=None), inputs(), class_axis=1)
    assert torch.equal(dswag.predict(model, posterior, inputs()), expected)


def test_a_loss_that_flattens_tokens_is_known_to_be_of_classes():
    model = nn.Sequential(linear(), nn.Unflatten(1, (4, 3)))
    clients = [(inputs(20), torch.randint(3, (20, 4), generator=generator_for(1)))] * 2

    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    run = dswag.train(model, clients, dswag.Config(clients=2, rounds=1), loss=loss)
    expected = dswag.predict(model, run.posterior, inputs(), link="softmax", class_axis=2)
    assert torch.equal(dswag.predict(model, run.posterior, inputs()), expected)


def test_outputs_that_are_no_logits_are_not_taken_for_them():
    model, run = trained(nn.MSELoss(), several)
    with pytest.raises(ValueError, match=r"takes its outputs as they are.*use dswag\.regression"):
        dswag.predict(model, run.posterior, inputs())
    model, run = trained(lambda outputs, targets: ((outputs - targets) ** 2).mean(), several)
    with pytest.raises(ValueError, match='does not tell how outputs become probabilities: pass link="softmax"'):
        dswag.predict(model, run.posterior, inputs())
    assert dswag.predict(model, run.posterior, inputs(), link="softmax").shape == (N, 3)


def test_a_link_that_cannot_be_is_refused():
    model = linear(3)
    with pytest.raises(ValueError, match='link must be "softmax" or "sigmoid", got \'probit\''):
        dswag.predict(model, around(model), inputs(), link="probit")
    with pytest.raises(ValueError, match="a sigmoid reads every output alone and has no class_axis, got 1"):
        dswag.predict(model, around(model), inputs(), link="sigmoid", class_axis=1)
    with pytest.raises(ValueError, match="link must be one of softmax, sigmoid, identity, unknown, got 'probit'"):
        around(model, link="probit")


def test_texts_of_several_lengths_are_predicted_batch_by_batch():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.classify = linear(3)

        def forward(self, x):
            return self.classify(x)

    model, generator = Tagger(), generator_for(2)
    batches = [torch.randn(4, length, 6, generator=generator) for length in (5, 7, 7, 2)]
    found = list(dswag.predictive_stream(model, around(model), batches, samples=3))
    assert [tuple(each.probabilities.shape) for each in found] == [(4, 5, 3), (4, 7, 3), (4, 7, 3), (4, 2, 3)]
    for each, batch in zip(found, batches, strict=True):
        alone = dswag.predict(model, around(model), batch, samples=3)
        torch.testing.assert_close(each.probabilities, alone)
    with pytest.raises(ValueError, match=r"must have one shape .* use dswag\.predictive_stream"):
        dswag.predict(model, around(model), batches, samples=3)


class Half(nn.Linear):
    """Its logits overflow in float16, above 65,504."""

    def forward(self, x):
        return super().forward(x).half() * 1000


def test_draws_whose_outputs_are_not_finite_are_named():
    model = Half(6, 3)
    posterior = around(model, spread=3.0)
    with pytest.raises(FloatingPointError, match=r"seed 4, draw 0 gives outputs that are not finite for \d+ of 50"):
        dswag.predict(model, posterior, 10 * inputs(50), seed=4)
    with pytest.raises(FloatingPointError, match="seed 4, draw 0"):
        next(dswag.predictive_stream(model, posterior, 10 * inputs(50), seed=4))
    thetas = torch.stack([torch.zeros(21), 100 * torch.ones(21)])
    with pytest.raises(FloatingPointError, match="member 1 gives outputs that are not finite for 50 of 50 examples"):
        dswag.ensemble(model, thetas, inputs(50).abs())
    broken = inputs()
    broken[2] = torch.nan
    with pytest.raises(FloatingPointError, match="for 1 of 9 examples: look for NaN in the inputs"):
        dswag.predict(linear(3), around(linear(3)), broken)


def test_draws_of_a_regression_that_are_not_finite_are_named():
    model = linear(1)
    broken = inputs()
    broken[2] = torch.inf
    with pytest.raises(FloatingPointError, match="seed 0, draw 0 gives outputs that are not finite for 1 of 9"):
        dswag.regression(model, around(model), broken, noise=0.1)


def test_classes_that_are_ruled_out_have_probability_0():
    class Masked(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.tensor([False, True, False]), -torch.inf)

    model = Masked(6, 3)
    result = dswag.predictive(model, around(model), inputs())
    assert (result.probabilities[:, 1] == 0).all()
    assert torch.isfinite(result.entropy).all()
