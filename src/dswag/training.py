"""Algorithm 1, Distributed SWAG training; `# l.` names the lines of the paper."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dswag import batch_norm, schedules
from dswag.aggregation import AGGREGATIONS
from dswag.cohorts import sample_clients
from dswag.config import Config
from dswag.folds import Evaluation, Tally
from dswag.moments import Moments
from dswag.parameters import Layout
from dswag.randomness import derive_seed
from dswag.tasks import ClientUpdate, Engine, EvaluateTask, FoldT, TrainTask


@dataclass(frozen=True)
class Round:
    """What stands at the server after a round of phase 1."""

    number: int
    """Rounds done, from 1."""
    theta: Float[Tensor, "d"]
    clients: tuple[int, ...]
    loss: float
    """Mean training loss of the clients' last local epoch, each on its own weights."""
    accuracy: float | None
    """Accuracy of θ on all clients' own data; measured only where `stop_accuracy` asks for it."""


def synchronize(engine: Engine, theta: Float[Tensor, "d"], config: Config, *, start: int = 0) -> Iterator[Round]:
    """Phase 1: yields θ_{t+1} after every round t from `start` on. Leaving the loop early does no harm."""
    epochs = config.rounds * config.local_epochs
    last_rate = config.learning_rate if config.final_learning_rate is None else config.final_learning_rate
    rates = schedules.linear(config.learning_rate, last_rate, epochs)
    for t in range(start, config.rounds):  # l. 3
        clients = sample_clients(config.clients_per_round, config.clients, seed=config.seed, phase=1, round=t)  # l. 4
        rates_t = rates[t * config.local_epochs : (t + 1) * config.local_epochs]
        tasks = _train_tasks(config, clients, rates_t, (config.local_epochs,), phase=1, round=t)
        update = AGGREGATIONS[config.aggregation](theta)
        aggregate = engine.reduce({"theta": theta}, tasks, update).result()  # l. 5-12
        theta = aggregate.theta  # l. 12
        accuracy = None if config.stop_accuracy is None else evaluate(engine, theta, config).accuracy
        yield Round(t + 1, theta, clients, aggregate.loss, accuracy)
        if accuracy is not None and config.stop_accuracy is not None and accuracy >= config.stop_accuracy:
            return  # Section 6.1


def explore(engine: Engine, theta: Float[Tensor, "d"], config: Config, collector: FoldT) -> FoldT:
    """Phase 2: sampled clients go on alone from θ_T; the collector takes in their snapshots as they come."""
    clients = sample_clients(config.explorers, config.clients, seed=config.seed, phase=2, round=0)  # l. 16
    period = config.explore_epochs // config.cycles
    first_rate, last_rate = config.explore_learning_rate, config.explore_final_learning_rate
    rates = schedules.cyclic(first_rate, last_rate, config.explore_epochs, period)
    snapshots = schedules.cycle_snapshots(config.explore_epochs, period, config.snapshots_per_cycle)
    tasks = _train_tasks(config, clients, rates, snapshots, phase=2, round=0)
    return engine.reduce({"theta": theta}, tasks, collector)  # l. 17-24


def collect(theta: Float[Tensor, "d"], config: Config, layout: Layout | None = None) -> Moments:
    """Phase 3: a collector for `explore`, whose `posterior()` is what line 32 returns (lines 25-32).

    Its moments are running ones, so each client's weights can be forgotten as soon as they came in.
    """
    return Moments(theta, rank=config.rank, centering=config.centering, layout=layout)  # l. 26-31


def evaluate(engine: Engine, theta: Float[Tensor, "d"], config: Config) -> Evaluation:
    """Mean loss and accuracy of θ on all clients' own training examples, where they are."""
    payload = {"theta": theta}
    part, most = config.training_part, config.batch_norm_examples
    (statistics,) = batch_norm.refresh(engine, payload, seed=config.seed, max_examples=most, part=part)
    size = batch_norm.BATCH_SIZE
    tasks = [
        EvaluateTask(index=client, client=client, occasion="the evaluation", part=part, batch_size=size)
        for client in range(engine.num_clients)
    ]
    return engine.reduce({**payload, **statistics}, tasks, Tally()).result()


def _train_tasks(
    config: Config,
    clients: tuple[int, ...],
    learning_rates: tuple[float, ...],
    snapshots: tuple[int, ...],
    *,
    phase: int,
    round: int,
) -> list[TrainTask]:
    update = ClientUpdate(
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        precision=config.precision,
    )
    return [
        TrainTask(
            index=index,
            client=client,
            occasion=f"round {round + 1}" if phase == 1 else f"phase {phase}",
            part=config.training_part,
            learning_rates=learning_rates,
            snapshots=snapshots,
            seed=derive_seed(config.seed, phase, round, client),
            update=update,
        )
        for index, client in enumerate(clients)
    ]
