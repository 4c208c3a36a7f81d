"""Conformal prediction through clients: what they count is what a slow loop counts, and sets cover what they should."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dswag
from dswag.client.conformal import CountedScores
from dswag.core.conformal_scores import covered
from dswag.core.randomness import DrawFrom, derive_seed, generator_for
from dswag.data import holdout
from dswag.data.examples import Examples
from dswag.data.partition import dirichlet

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def model(outputs=3, *, batch_norm=False):
    with DrawFrom(generator_for(5)):
        return nn.Sequential(*([nn.BatchNorm1d(4)] if batch_norm else []), nn.Linear(4, outputs))


def noisy(n, seed):
    generator = generator_for(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, (2 * x[:, :3]).softmax(1).multinomial(1, generator=generator)[:, 0]


def split(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


CONFIG = dswag.Config(clients=3, rounds=3, holdout=0.4, samples=4, seed=2, explore_epochs=2, cycles=2)


def held_out_of(clients, config):
    part = [holdout.split(Examples(*c), config.holdout, derive_seed(config.seed, i))[1] for i, c in enumerate(clients)]
    return [(examples.inputs, examples.targets) for examples in part]


@pytest.mark.parametrize("score", ["thr", "aps", "raps"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_counts_are_those_of_the_averaged_predictions_of_what_was_held_out(score, batch_norm):
    clients = split(*noisy(120, 0), [60, 20, 40])
    net = model(batch_norm=batch_norm)
    run = dswag.train(net, clients, CONFIG)
    found = dswag.conformal(run.engine, run.posterior, CONFIG, score=score)
    options = {"samples": 4, "seed": derive_seed(CONFIG.seed, 5)}
    assert sorted(found.counts) == [0, 1, 2]
    for client, (x, y) in enumerate(held_out_of(clients, CONFIG)):
        if batch_norm:  # statistics are of what clients train on, so that predictions here differ a little
            assert found.num_examples(client) == len(y)
            continue
        p = dswag.predictive(net, run.posterior, x, **options).probabilities
        expected = found.scoring.counts(found.scoring.classes(p).gather(1, y[:, None]))
        assert (found.counts[client].cumsum(0)[-1] == len(y)).all()
        size = max(len(expected), len(found.counts[client]))
        ours, theirs = (F.pad(counts, (0, size - len(counts))) for counts in (found.counts[client], expected))
        # float32 probabilities may lie across the end of a bin
        assert int((ours.cumsum(0) - theirs.cumsum(0)).abs().max()) <= 1


def test_all_classes_belong_to_sets_of_a_client_with_too_few_examples():
    clients = split(*noisy(110, 0), [90, 20])
    config = dswag.Config(clients=2, rounds=2, holdout=0.2, samples=3, explore_epochs=2, cycles=2)
    net = model()
    run = dswag.train(net, clients, config)
    found = dswag.conformal(run.engine, run.posterior, config)
    p = dswag.predict(net, run.posterior, noisy(10, 9)[0])
    assert found.num_examples() == 22
    assert found.num_examples(1) == 4
    assert found.threshold(0.1, client=1) == math.inf
    assert found.sets(p, 0.1, client=1).all()
    assert not found.sets(p, 0.1).all()
    assert (found.sets(p, 0.3).sum() <= found.sets(p, 0.1).sum()).all()
    with pytest.raises(ValueError, match=r"counts of the clients \[0, 1\], got client 7"):
        found.threshold(client=7)


def trained(clients, holdout=0.25):
    config = dswag.Config(clients=len(clients), rounds=3, holdout=holdout, samples=5, explore_epochs=2, cycles=2)
    net = model()
    run = dswag.train(net, clients, config)
    return net, run, dswag.conformal(run.engine, run.posterior, config)


def tolerance(n, m, alpha):
    """5 deviations of the coverage of m new examples: Beta around 1 - α given n held-out ones, and binomial."""
    share = alpha * (1 - alpha)
    return 5 * math.sqrt(share / (n + 2) + share / m)


def test_sets_of_exchangeable_clients_cover_as_promised():
    x, y = noisy(1200, 1)
    net, run, found = trained(split(x, y, [300] * 4))
    new_x, new_y = noisy(4000, 2)
    p = dswag.predict(net, run.posterior, new_x, samples=5)
    for alpha in (0.1, 0.4):
        share = float(covered(found.sets(p, alpha), new_y).double().mean())
        assert share == pytest.approx(1 - alpha, abs=tolerance(found.num_examples(), 4000, alpha) + 0.005)
        own = float(covered(found.sets(p, alpha, client=2), new_y).double().mean())
        assert own == pytest.approx(1 - alpha, abs=tolerance(found.num_examples(2), 4000, alpha) + 1 / 76)


def coverage_by_client(x, y, parts):
    """Of clients that train on the first quarter of their rows and hold half of it out, on the other three quarters.

    Returns for each client: coverage by the threshold of all clients, by its own, its held-out and its test examples.
    """
    train_rows = [part[: len(part) // 4] for part in parts]
    net, run, found = trained([(x[rows], y[rows]) for rows in train_rows], holdout=0.5)
    outcomes = []
    for client, part in enumerate(parts):
        rows = part[len(part) // 4 :]
        p = dswag.predict(net, run.posterior, x[rows], samples=5)
        shared, own = (
            float(covered(found.sets(p, 0.2, client=whose), y[rows]).double().mean()) for whose in (None, client)
        )
        outcomes.append((shared, own, found.num_examples(client), len(rows)))
    return outcomes


def check_what_holds(outcomes):
    """Over all clients together by the shared threshold, and for each client by its own."""
    for _, own, held_out, tested in outcomes:
        assert own == pytest.approx(0.8, abs=tolerance(held_out, tested, 0.2) + 1 / held_out)
    held_out, tested = (sum(outcome[i] for outcome in outcomes) for i in (2, 3))
    together = sum(outcome[0] * outcome[3] for outcome in outcomes) / tested
    assert together == pytest.approx(0.8, abs=tolerance(held_out, tested, 0.2) + 0.005)


def test_sets_of_clients_with_skewed_labels_cover_their_mixture_and_each_client_by_its_own_counts():
    """Dirichlet 0.3, the examples of every client in random order."""
    x, y = noisy(12_000, 3)
    parts = dirichlet(y, clients=4, seed=1, concentration=0.3, min_examples=400)
    parts = [part[torch.randperm(len(part), generator=generator_for(6))] for part in parts]
    check_what_holds(coverage_by_client(x, y, parts))


def test_a_shared_threshold_does_not_cover_a_client_whose_labels_are_harder():
    """A quarter of the clients has labels by chance alone: of three equally likely classes sets hold too few."""
    x, y = noisy(8000, 3)
    y[:2000] = torch.randint(3, (2000,), generator=generator_for(7))
    outcomes = coverage_by_client(x, y, list(torch.arange(8000).split(2000)))
    check_what_holds(outcomes)
    (by_chance, *others) = (shared for shared, *_ in outcomes)
    assert by_chance < 0.7 < 0.8 < min(others)


@pytest.mark.parametrize("score", ["absolute", "normalized"])
def test_intervals_of_a_regression_cover_as_promised(score):
    generator = generator_for(4)
    x = torch.randn(3000, 4, generator=generator)
    y = x[:, :1] + (0.1 + x[:, 1:2].abs()) * torch.randn(3000, 1, generator=generator)

    class WithNoise(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = model(1)

        def forward(self, x):
            return self.mean(x), (0.1 + x[:, 1:2].abs()) ** 2

    net = WithNoise()
    config = dswag.Config(clients=2, rounds=3, holdout=0.5, samples=5, explore_epochs=2, cycles=2)
    run = dswag.train(net, split(x[:1000], y[:1000], 500), config, loss=lambda o, t: F.mse_loss(o[0], t))
    found = dswag.conformal(run.engine, run.posterior, config, score=score)
    result = dswag.regression(net, run.posterior, x[1000:], samples=5)
    low, high = found.intervals(result.mean, result.variance, alpha=0.2)
    inside = (low <= y[1000:]) & (y[1000:] <= high)
    assert float(inside.double().mean()) == pytest.approx(0.8, abs=tolerance(500, 2000, 0.2) + 1 / 501)
    widths = (high - low).std()
    assert (widths > 0.1) if score == "normalized" else (widths < 1e-6)


def test_what_cannot_be_is_refused():
    clients = split(*noisy(60, 0), [30, 30])
    net = model()
    config = dswag.Config(clients=2, rounds=1, explore_epochs=2, cycles=2)
    run = dswag.train(net, clients, config)
    with pytest.raises(ValueError, match="needs examples that no client trained on: train with holdout"):
        dswag.conformal(run.engine, run.posterior, config)
    _, run, found = trained(clients)
    with pytest.raises(ValueError, match=r"sets are of classes.*\[2, 3, 4\]"):
        found.sets(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="intervals are of regressions"):
        found.intervals(torch.rand(3))
    with pytest.raises(dswag.ClientError, match="returns means alone: pass noise="):
        dswag.conformal(run.engine, run.posterior, run.config, score="absolute")
    with pytest.raises(ValueError, match="there are no scores of no clients"):
        CountedScores().result()
