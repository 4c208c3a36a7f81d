"""Small runs that every engine must answer alike, in one process or several: each gives named tensors."""

import math

import torch
from torch import nn

import dswag
from dswag.algorithms import training
from dswag.client.statistics import refresh
from dswag.client.training import TrainTask
from dswag.config import Config
from dswag.core.parameters import Layout
from dswag.core.randomness import DrawFrom, derive_seed, generator_for
from dswag.data.examples import Examples
from dswag.federation.aggregation import Mean
from dswag.federation.folds import Both, Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import round_trip
from dswag.posterior.moments import Moments

SIZES = (20, 33, 11, 26, 14)
"""Of the clients: unequal, and more than ranks."""
BAD = 3
"""The client whose labels no model has, where one is to fail."""


def clients(sizes=SIZES, bad=()):
    """Examples of a noisy linear rule over 6 features and 3 classes."""
    rule = torch.randn(6, 3, generator=generator_for(0))
    made = []
    for client, size in enumerate(sizes):
        generator = generator_for(1, client)
        inputs = torch.randn(size, 6, generator=generator)
        targets = (inputs @ rule + 0.5 * torch.randn(size, 3, generator=generator)).argmax(1)
        made.append(Examples(inputs, targets + 5 if client in bad else targets))
    return made


def network():
    """With BatchNorm and dropout."""
    with DrawFrom(generator_for(2)):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3))


def settings(**changes):
    """Sampled clients, several cycles and snapshots, momentum."""
    given = {
        "clients": len(SIZES),
        "clients_per_round": 4,
        "rounds": 3,
        "local_epochs": 2,
        "learning_rate": 0.1,
        "explorers": 4,
        "explore_epochs": 4,
        "cycles": 2,
        "snapshots_per_cycle": 2,
        "batch_size": 8,
        "rank": 6,
    }
    return Config(**{**given, **changes})


def text(words):
    """Words as a tensor."""
    return torch.frombuffer(bytearray(words.encode()), dtype=torch.uint8)


def words(tensor):
    """The words that were a tensor."""
    return bytes(tensor.tolist()).decode()


def tasks(numbers, **options):
    """Training tasks for these clients."""
    given = {
        "occasion": "round 1",
        "learning_rates": (0.1, 0.05),
        "snapshots": (1, 2),
        "update": ClientUpdate(batch_size=8, momentum=0.9),
    }
    return [
        TrainTask(index=index, client=client, seed=derive_seed(3, client), **{**given, **options})
        for index, client in enumerate(numbers)
    ]


def theta():
    """Where the clients start."""
    return Layout.of(network()).flatten(network())


def posterior_of(run):
    """The tensors of a run's posterior, and what phase 1 left."""
    history = torch.tensor([[done.loss, done.bytes_down, done.bytes_up] for done in run.history], dtype=torch.float64)
    return {"theta": run.theta, "history": history, **run.posterior.tensors()}


def trained(make_engine, **changes):
    """Phases 1 to 3."""
    config, data = settings(**changes), clients()
    return posterior_of(dswag.train(network(), data, config, engine=make_engine(network(), data)))


def plainly_trained(make_engine):
    """The defaults."""
    return trained(make_engine)


def calibrated(make_engine):
    """By number of examples, server momentum, half-width uploads, and scales fitted to held-out examples."""
    options = {"aggregation": "weighted-mean", "server_optimizer": "momentum", "upload": "bfloat16"}
    return trained(make_engine, holdout=0.3, calibrate=True, **options)


def withstanding(make_engine):
    """The geometric median of few, and moments of the explorers without the furthest, of which each rank has a part."""
    robust = {"aggregation": "geometric-median", "moments": "trimmed", "byzantine": 1}
    return trained(make_engine, clients_per_round=4, explorers=5, **robust)


def refreshed(make_engine):
    """BatchNorm statistics of θ, and of draws that the clients make."""
    moments = Moments(theta(), rank=4, layout=Layout.of(network()))
    for index in range(6):
        moments.add(theta() + 0.1 * torch.randn(theta().shape, generator=generator_for(4, index)), index=index)
    posterior = moments.posterior()
    engine = make_engine(network(), clients())
    own = refresh(engine, {"theta": theta()}, seed=1, max_examples=9)
    drawn = refresh(engine, posterior.tensors(), seed=1, draws=(posterior.draws(5, 3),))
    return {f"{n} {name}": values for n, one in enumerate((*own, *drawn)) for name, values in one.items()}


def evaluated(make_engine):
    """Federated evaluation."""
    found = training.evaluate(make_engine(network(), clients()), theta(), settings())
    return {"found": torch.tensor([found.loss, found.accuracy, found.num_examples], dtype=torch.float64)}


def more_ranks_than_clients(make_engine):
    """All but one rank have nothing to do."""
    fold = Both(Moments(theta(), rank=2), Snapshots())
    posterior, rows = round_trip(
        make_engine(network(), clients((20,))), {"theta": theta()}, tasks([0]), fold
    ).fold.result()
    return {"rows": rows, **posterior.tensors()}


def without_an_anchor(make_engine):
    """Moments that find their anchor themselves, on every rank another."""
    fold = round_trip(
        make_engine(network(), clients()), {"theta": theta()}, tasks(range(5)), Moments(rank=3, dtype=torch.float64)
    ).fold
    return dict(fold.result().tensors())


def principal_columns(make_engine):
    """Their covariance, for signs and order are free."""
    fold = Moments(theta(), rank=10, columns="svd")  # as many as there are snapshots: nothing is lost
    columns = (
        round_trip(make_engine(network(), clients()), {"theta": theta()}, tasks(range(5)), fold)
        .fold.result()
        .deviations
    )
    return {"covariance": columns.T @ columns}


def failing(make_engine):
    """Two clients fail; the first in task order is named."""
    engine = make_engine(network(), clients(bad=(1, BAD)))
    try:
        round_trip(engine, {"theta": theta()}, tasks([0, BAD, 2, 1]), Snapshots())
    except dswag.ClientError as error:
        again = round_trip(engine, {"theta": theta()}, tasks([0, 2]), Snapshots()).fold.result()
        return {"error": text(str(error)), "again": again}


def tolerant(make_engine):
    """The others go on, and who is missing is known."""
    engine = make_engine(network(), clients(bad=(BAD,)))
    done = round_trip(engine, {"theta": theta()}, tasks(range(5)), Mean(theta()), minimum=4)
    assert done.fold.result().num_clients == 4
    return {
        "theta": done.fold.result().theta,
        "missing": text(repr(done.missing)),
        "bytes": torch.tensor([done.bytes_down, done.bytes_up]),
    }


def too_few(make_engine):
    """Below the minimum even after asking again."""
    engine = make_engine(network(), clients(bad=(1, BAD)))
    try:
        round_trip(engine, {"theta": theta()}, tasks(range(5)), Mean(theta()), minimum=4)
    except RuntimeError as error:
        return {"error": text(f"{type(error).__name__}: {error}")}


class Recovering:
    """Data that cannot be read the first time."""

    def __init__(self, examples):
        self.examples, self.num_examples, self.tries = examples, examples.num_examples, 0

    def batches(self, *arguments, **options):
        self.tries += 1
        if self.tries == 1:
            raise OSError("the disk is asleep")
        return self.examples.batches(*arguments, **options)


def asked_again(make_engine):
    """The client that failed answers when it is asked again; the same rank, being the first task of both."""
    data = clients()
    data[4] = Recovering(data[4])
    fold = Both(Mean(theta()), Snapshots())
    options = {"learning_rates": (0.1,), "snapshots": (1,)}
    done = round_trip(make_engine(network(), data), {"theta": theta()}, tasks([4, 1, 2], **options), fold, minimum=3)
    mean, rows = done.fold.result()
    assert not done.missing
    return {"mean": mean.theta, "rows": rows}


def overflowing(make_engine):
    """Weights that are no numbers any more."""
    try:
        round_trip(
            make_engine(network(), clients()),
            {"theta": theta()},
            tasks([0, 4], learning_rates=(0.1, math.inf)),
            Snapshots(),
        )
    except dswag.ClientError as error:
        return {"error": text(str(error))}


SCENARIOS = (
    plainly_trained,
    calibrated,
    withstanding,
    refreshed,
    evaluated,
    more_ranks_than_clients,
    without_an_anchor,
    principal_columns,
    failing,
    tolerant,
    too_few,
    asked_again,
    overflowing,
)
