"""Labels that do not count, class weights, tokens, pixels and yes-or-no labels in what clients measure."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dswag
from dswag.client.labels import Labels
from dswag.core.randomness import DrawFrom, generator_for
from dswag.evaluation.metrics import score


def made(*, outputs=3, shape=None):
    with DrawFrom(generator_for(5)):
        linear = nn.Linear(4, outputs)
    return linear if shape is None else nn.Sequential(linear, nn.Unflatten(1, shape))


def inputs(n=120):
    return torch.randn(n, 4, generator=generator_for(1))


def labels(x, shape=()):
    """A third of them ignored, and more at the start, so that clients and batches have unequal numbers."""
    found = torch.randint(3, (len(x), *shape), generator=generator_for(2))
    ignored = torch.rand(found.shape, generator=generator_for(3)) < torch.linspace(1, 0, len(x)).view(
        -1, *(1 for _ in shape)
    )
    return found.masked_fill(ignored, -100)


def halves(x, y):
    return [(x[:50], y[:50]), (x[50:], y[50:])]


WEIGHTS = torch.tensor([1.0, 5.0, 0.2])


@pytest.mark.parametrize(
    ("shape", "loss"),
    [
        (None, F.cross_entropy),
        (None, nn.CrossEntropyLoss(weight=WEIGHTS)),
        (None, partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1)),
        (None, lambda outputs, targets: F.cross_entropy(outputs, targets)),
        ((3, 5), F.cross_entropy),  # [n, c, t]
        ((3, 2, 2), nn.CrossEntropyLoss(weight=WEIGHTS)),  # [n, c, h, w]
        ((5, 3), lambda outputs, targets: F.cross_entropy(outputs.reshape(-1, 3), targets.reshape(-1))),  # [n, t, c]
    ],
)
def test_evaluation_equals_that_of_all_examples_in_one_batch(shape, loss):
    """The loss as PyTorch computes it in one call, and accuracy over the labels that count."""
    model = made(outputs=3 if shape is None else torch.Size(shape).numel(), shape=shape)
    x = inputs()
    axis = 2 if shape == (5, 3) else 1
    y = labels(x, () if shape is None else tuple(n for i, n in enumerate(shape, 1) if i != axis))
    engine = dswag.InProcess(model, halves(x, y), loss=loss)
    found = dswag.evaluate(engine, dswag.Layout.of(model).flatten(model), dswag.Config(clients=2))
    with torch.no_grad():
        outputs = model(x)
    counts = y != -100
    right = (outputs.argmax(axis) == y)[counts]
    assert found.loss == pytest.approx(float(loss(outputs, y)), rel=1e-5)
    assert found.accuracy == pytest.approx(float(right.double().mean()))
    assert found.num_examples == int(counts.sum())
    for client, rows in zip(found.clients, (slice(0, 50), slice(50, 120)), strict=True):
        own = score(outputs[rows].softmax(axis), y[rows])
        assert client.loss == pytest.approx(float(loss(outputs[rows], y[rows])), rel=1e-5)
        assert client.accuracy == own.accuracy
        assert client.calibration_error == pytest.approx(own.ece_equal_mass, abs=1e-6)
        assert client.num_examples == own.num_examples


def test_a_label_of_ones_own_is_ignored():
    model, x = made(), inputs()
    y = labels(x).where(labels(x) >= 0, 7)
    engine = dswag.InProcess(model, halves(x, y), loss=nn.CrossEntropyLoss(ignore_index=7))
    theta = dswag.Layout.of(model).flatten(model)
    found = dswag.evaluate(engine, theta, dswag.Config(clients=2))
    same = dswag.InProcess(model, halves(x, labels(x)))
    assert found == dswag.evaluate(same, theta, dswag.Config(clients=2))


def test_yes_or_no_labels_have_an_accuracy_and_a_calibration_error():
    model, x = made(outputs=2), inputs()
    y = (x[:, :2] > 0).float()
    engine = dswag.InProcess(model, halves(x, y), loss=nn.BCEWithLogitsLoss())
    found = dswag.evaluate(engine, dswag.Layout.of(model).flatten(model), dswag.Config(clients=2))
    with torch.no_grad():
        outputs = model(x)
    assert found.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(outputs, y)), rel=1e-5)
    assert found.accuracy == pytest.approx(score(outputs.sigmoid(), y).accuracy)
    assert found.num_examples == 240


def test_training_reports_the_loss_of_the_labels_that_count():
    """One client, no learning: the mean over its minibatches is the loss of all examples."""
    model, x = made(), inputs()
    config = dswag.Config(clients=1, rounds=1, learning_rate=1e-9, batch_size=16, explore_epochs=2, cycles=2)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(weight=WEIGHTS)):
        run = dswag.train(model, [(x, labels(x))], config, loss=loss)
        with torch.no_grad():
            assert run.history[0].loss == pytest.approx(float(loss(model(x), labels(x))), rel=1e-5)


def test_a_batch_without_a_label_that_counts_changes_nothing():
    """The same weights as without these examples, bit for bit; its loss is NaN and its gradient zero."""
    model, x = made(), inputs(64)
    y = torch.randint(3, (64,), generator=generator_for(4))
    padded = torch.cat([x, inputs(32)]), torch.cat([y, torch.full((32,), -100)])
    config = dswag.Config(
        clients=1, rounds=1, batch_size=32, momentum=0.0, weight_decay=0.0, explore_epochs=2, cycles=2
    )
    found, expected = (dswag.train(model, [InOrder(*data)], config) for data in (padded, (x, y)))
    assert torch.equal(found.theta, expected.theta)
    assert torch.equal(found.posterior.deviations, expected.posterior.deviations)
    assert found.history[0].loss == expected.history[0].loss
    first = dswag.train(model, [InOrder(padded[0].flip(0), padded[1].flip(0))], config)
    assert first.history[0].loss > 0  # though its first batch has none


class InOrder:
    """Batches of 32 in the order of the examples, whatever the generator."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    @property
    def num_examples(self):
        return len(self.x)

    def batches(self, batch_size, *, generator=None, augment=False):
        return zip(self.x.split(32), self.y.split(32), strict=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("form", ["tensors", "a data set"])
def test_labels_of_any_whole_type_train_the_same(dtype, form):
    x = inputs(40)
    y, several = (x[:, 0] > 0).to(dtype), (x[:, :3] > 0).to(dtype)
    config = dswag.Config(clients=1, rounds=1, explore_epochs=2, cycles=2)

    def theta(targets, loss):
        data = (x, targets) if form == "tensors" else Rows(x, targets)
        return dswag.train(made(), [data], config, loss=loss).theta

    assert torch.equal(theta(y, F.cross_entropy), theta(y.long(), F.cross_entropy))
    bce = F.binary_cross_entropy_with_logits
    assert torch.equal(theta(several, bce), theta(several.float(), bce))


class Rows(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


def test_a_client_without_any_label_that_counts_is_named_with_the_cause():
    model, x = made(), inputs()
    clients = [(x[:50], torch.full((50,), -100)), (x[50:], labels(x)[50:])]
    with pytest.raises(dswag.ClientError, match="client 0 failed in round 1: no label counts: all are -100, which the"):
        dswag.train(model, clients, dswag.Config(clients=2, rounds=1))
    engine = dswag.InProcess(model, clients)
    found = dswag.evaluate(engine, dswag.Layout.of(model).flatten(model), dswag.Config(clients=2))
    assert found.clients[0].accuracy is None
    assert found.accuracy == found.clients[1].accuracy


def test_stop_accuracy_is_that_of_the_labels_that_count():
    model, x = made(), inputs()
    with torch.no_grad():
        y = model(x).argmax(1)  # all right from the start
    y[::2] = -100
    config = dswag.Config(clients=2, rounds=5, learning_rate=0.001, stop_accuracy=0.99)
    run = dswag.train(model, halves(x, y), config)
    assert len(run.history) == 1
    assert run.history[0].accuracy == 1


def posterior_of(model, clients, loss):
    config = dswag.Config(clients=2, rounds=3, holdout=0.3, seed=1, calibrate=True)
    return dswag.train(model, clients, config, loss=loss).posterior


def test_ignored_labels_take_no_part_in_calibration():
    """The gains are those of the labels that count, with the same draws."""
    model, x, y = made(), inputs(), labels(inputs())
    posterior = posterior_of(model, halves(x, y), F.cross_entropy)
    assert 0.4 < posterior.temperature < 2.5
    tokens = made(outputs=15, shape=(3, 5))
    assert posterior_of(tokens, halves(x, labels(x, (5,))), F.cross_entropy).temperature > 0


def test_calibrating_one_logit_equals_calibrating_two_of_which_one_is_zero():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = made(outputs=1)

        def forward(self, x):
            z = self.logit(x)
            return torch.cat([torch.zeros_like(z), z], 1)

    x = inputs()
    y = (x[:, 0] + 0.5 * torch.randn(120, generator=generator_for(8)) > 0).long()
    one = posterior_of(made(outputs=1), halves(x, y[:, None].float()), nn.BCEWithLogitsLoss())
    two = posterior_of(Two(), halves(x, y), F.cross_entropy)
    assert (one.temperature, one.within_scale, one.between_scale) == (
        two.temperature,
        two.within_scale,
        two.between_scale,
    )
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-3, atol=1e-4)


def test_what_a_regression_cannot_have_is_refused_before_training():
    clients = [(inputs(20), inputs(20)[:, :1])] * 2
    for setting in ({"calibrate": True, "holdout": 0.2}, {"stop_accuracy": 0.9}):
        with pytest.raises(ValueError, match="is for classes and yes-or-no labels"):
            dswag.train(made(outputs=1), clients, dswag.Config(clients=2, **setting), loss=nn.MSELoss())


def test_targets_that_a_loss_would_broadcast_are_refused():
    clients = [(inputs(20), inputs(20)[:, 0])] * 2
    for loss in (F.mse_loss, nn.HuberLoss()):
        with pytest.raises(dswag.ClientError, match=r"one shape for this loss, got \[20, 1\] and \[20\].*\[:, None\]"):
            dswag.train(made(outputs=1), clients, dswag.Config(clients=2), loss=loss)


def test_the_weight_of_a_batch_is_what_the_mean_divides_by():
    y = torch.tensor([0, 1, -100, 1])
    assert int(Labels(F.cross_entropy).weight(y)) == 3
    assert float(Labels(nn.CrossEntropyLoss(weight=WEIGHTS)).weight(y)) == 11
    assert Labels(F.cross_entropy).weight(torch.full((4, 3), 1 / 3)) == 4
    assert Labels(F.mse_loss).weight(torch.zeros(4, 2)) == 8
    assert Labels(lambda outputs, targets: outputs["loss"]).weight(y) == 3
    assert Labels(lambda outputs, targets: outputs["loss"]).weight(torch.zeros(4, 2)) == 4
