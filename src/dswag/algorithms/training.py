"""Algorithm 1, Distributed SWAG training; `# l.` names the lines of the paper."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.algorithms import schedules, server_update
from dswag.algorithms.server_update import Server
from dswag.client import batch_norm
from dswag.client.evaluation import EvaluateTask, Evaluation, Tally
from dswag.client.stability import DivergenceError, has_diverged
from dswag.client.statistics import refresh
from dswag.client.training import TrainTask
from dswag.config import Config
from dswag.core.parameters import Layout
from dswag.core.randomness import derive_seed
from dswag.federation.aggregation import ROBUST, aggregator
from dswag.federation.client_sampling import sample_clients
from dswag.federation.contract import Engine, FoldT
from dswag.federation.folds import prefixed
from dswag.federation.layouts import with_layout
from dswag.federation.round_trip import Missing, RoundTrip, round_trip
from dswag.posterior.moments import Moments
from dswag.posterior.robust_moments import RobustMoments

LIKE_MOMENTS = {"trimmed": "trimmed-mean", "median": "median"}
"""Rules that withstand what the robust moments of these names do."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundSummary:
    """The outcome of a round of phase 1, without the weights."""

    number: int
    """Rounds done, from 1."""
    clients: tuple[int, ...]
    """The clients sampled, including any that are missing."""
    missing: tuple[Missing, ...]
    """The clients without a result, and why; none unless `on_failure` is "skip"."""
    loss: float
    """Mean training loss of the clients' last local epoch, each on its own weights."""
    accuracy: float | None
    """Accuracy of θ on all clients' own training data, in [0, 1]; None unless `stop_accuracy` is set."""
    bytes_down: int
    """Bytes sent to all clients together."""
    bytes_up: int
    """Bytes sent back."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Round(RoundSummary):
    """The outcome of a round of phase 1."""

    server: Server
    """The state that the next round starts from."""

    @property
    def theta(self) -> Float[Tensor, "d"]:
        """θ_{t+1}."""
        return self.server.theta

    def summary(self) -> RoundSummary:
        """The same without the weights, for those who keep every round."""
        return RoundSummary(**{field.name: getattr(self, field.name) for field in fields(RoundSummary)})


def synchronize(engine: Engine, start: Server, config: Config) -> Iterator[Round]:
    """Phase 1: yields a `Round` with θ_{t+1} after every round t, from `start` on, which is `Server(theta)` at first.

    You may leave the loop at any time. Another loop that starts from a round's `server` yields what the first one would
    have yielded after that round.

    Raises:
        ClientError, TooFewClientsError: from `round_trip`.
        ValueError: `stop_accuracy` where outputs and targets are no classes.
        DivergenceError: a round whose loss has diverged (`stability.has_diverged`), or whose θ is not finite.
    """
    phase, rule = config.train, config.server
    last_rate = phase.learning_rate if phase.final_learning_rate is None else phase.final_learning_rate
    rates = schedules.linear(phase.learning_rate, last_rate, phase.rounds * phase.local_epochs)
    state = start
    if state.round and _reached(config, _accuracy(engine, state, config)):
        return
    for t in range(state.round, phase.rounds):  # l. 3
        theta = state.theta
        clients = sample_clients(phase.clients_per_round, config.clients, seed=config.seed, phase=1, round=t)  # l. 4
        rates_t = rates[t * phase.local_epochs : (t + 1) * phase.local_epochs]
        tasks = _train_tasks(config, clients, rates_t, (phase.local_epochs,), phase=1, round=t)
        update = aggregator(rule.aggregation, theta, byzantine=rule.byzantine, clip_update=rule.clip_update)
        enough = config.enough_of(len(tasks), phase=1)
        payload = with_layout({"theta": theta}, state.layout)
        done = round_trip(engine, payload, tasks, update, minimum=enough)  # l. 5-11
        aggregate = done.fold.result()
        first_loss = aggregate.loss if state.first_loss is None else state.first_loss
        state = replace(server_update.step(state, aggregate.theta, config), first_loss=first_loss)  # l. 12
        _check_divergence(state, aggregate.loss, rates_t[-1], config)
        accuracy = _accuracy(engine, state, config)
        yield Round(
            number=state.round,
            clients=clients,
            missing=done.missing,
            loss=aggregate.loss,
            accuracy=accuracy,
            bytes_down=done.bytes_down,
            bytes_up=done.bytes_up,
            server=state,
        )
        if _reached(config, accuracy):
            return  # Section 6.1


def explore(
    engine: Engine, theta: Float[Tensor, "d"], config: Config, collector: FoldT, *, layout: Layout | None = None
) -> RoundTrip[FoldT]:
    """Phase 2: sampled clients continue from θ_T; the collector takes in their last snapshots as they come.

    As printed, every client continues alone (`explore_rounds` = 1). With more round trips, the explorers are averaged
    after each but the last, by the rule of line 12, and continue from there together. Where `moments` are to withstand
    malicious explorers and that rule does not, the rule is the trimmed mean or the median, as the moments are.

    The collector is the `fold` of the round trip that is returned; its bytes and missing clients are those of all.
    The layout says where each parameter lies in θ; as in the clients' own models if None.

    Raises:
        ClientError, TooFewClientsError: from `round_trip`.
    """
    clients = sample_clients(config.explore.explorers, config.clients, seed=config.seed, phase=2, round=0)  # l. 16
    plan, rule, moments = schedules.exploration(config), config.server, config.posterior.moments
    missing: list[Missing] = []
    bytes_down = bytes_up = 0
    for number, (rates, snapshots) in enumerate(plan[:-1]):
        tasks = _train_tasks(config, clients, rates, snapshots, phase=2, round=number)
        name = rule.aggregation if rule.aggregation in ROBUST else LIKE_MOMENTS.get(moments, rule.aggregation)
        update = aggregator(name, theta, byzantine=rule.byzantine, clip_update=rule.clip_update)
        needed = [config.enough_of(len(tasks), phase=phase) for phase in (1, 2)]
        enough = max((number for number in needed if number is not None), default=None)
        together = round_trip(engine, with_layout({"theta": theta}, layout), tasks, update, minimum=enough)  # l. 17-23
        theta = together.fold.result().theta  # l. 12
        missing += together.missing
        bytes_down, bytes_up = bytes_down + together.bytes_down, bytes_up + together.bytes_up
    rates, snapshots = plan[-1]
    tasks = _train_tasks(config, clients, rates, snapshots, phase=2, round=len(plan) - 1)
    enough = config.enough_of(len(tasks), phase=2)
    done = round_trip(engine, with_layout({"theta": theta}, layout), tasks, collector, minimum=enough)  # l. 17-24
    return replace(
        done,
        missing=(*missing, *done.missing),
        bytes_down=bytes_down + done.bytes_down,
        bytes_up=bytes_up + done.bytes_up,
    )


def collect(theta: Float[Tensor, "d"], config: Config, layout: Layout | None = None) -> Moments | RobustMoments:
    """Phase 3: a collector for `explore`, whose `posterior()` is what line 32 returns (lines 25-32).

    By default these are running moments, which forget each client's weights once they are taken in. Their sums are in
    float64, so that what several processes merge rounds to what one process finds. With `moments` "trimmed" or
    "median", which withstand malicious clients, all weights are kept.
    """
    kept = config.posterior
    if kept.moments == "mean":  # l. 26-31
        return Moments(theta, rank=kept.rank, columns=kept.columns, layout=layout, dtype=torch.float64)
    return RobustMoments(theta, kept.moments, byzantine=config.server.byzantine, rank=kept.rank, layout=layout)


def evaluate(engine: Engine, theta: Float[Tensor, "d"], config: Config, *, layout: Layout | None = None) -> Evaluation:
    """Mean loss and accuracy of θ on all clients' training examples; each client evaluates its own.

    The layout says where each parameter lies in θ; as in the clients' own models if None.
    """
    payload = with_layout({"theta": theta}, layout)
    part, enough = config.training_part, config.enough_of(engine.num_clients)
    (statistics,) = refresh(
        engine, payload, seed=config.seed, max_examples=config.predict.batch_norm_examples, part=part, minimum=enough
    )
    size = batch_norm.BATCH_SIZE
    tasks = [
        EvaluateTask(index=client, client=client, occasion="the evaluation", part=part, batch_size=size)
        for client in range(engine.num_clients)
    ]
    return round_trip(
        engine, {**payload, **prefixed("buffer", statistics)}, tasks, Tally(), minimum=enough
    ).fold.result()


def _accuracy(engine: Engine, state: Server, config: Config) -> float | None:
    if config.train.stop_accuracy is None:
        return None
    accuracy = evaluate(engine, state.theta, config, layout=state.layout).accuracy
    if accuracy is None:
        raise ValueError("stop_accuracy takes scores [b, c] and the class of each example, to count those that agree")
    return accuracy


def _reached(config: Config, accuracy: float | None) -> bool:
    return accuracy is not None and config.train.stop_accuracy is not None and accuracy >= config.train.stop_accuracy


def _check_divergence(state: Server, loss: float, rate: float, config: Config) -> None:
    advice = f"lower learning_rate ({rate:g} in this round), or set clip_gradient"
    if config.server.optimizer != "plain" or config.server.learning_rate != 1:
        advice = f"lower server_learning_rate ({config.server.learning_rate:g}), or " + advice
    if state.first_loss is not None and has_diverged(loss, state.first_loss, config.faults.max_loss_growth):
        raise DivergenceError(
            f"round {state.round} diverged: the mean training loss is {loss:g}, after {state.first_loss:g} in the "
            f"first round: {advice}"
        )
    if not torch.isfinite(state.theta).all():
        raise DivergenceError(f"round {state.round} diverged: θ is not finite: {advice}")


def _exploring(config: Config, round: int) -> str:
    return "phase 2" if config.explore_exchanges == 1 else f"phase 2, round {round + 1}"


def _train_tasks(
    config: Config,
    clients: tuple[int, ...],
    learning_rates: tuple[float, ...],
    snapshots: tuple[int, ...],
    *,
    phase: int,
    round: int,
) -> list[TrainTask]:
    return [
        TrainTask(
            index=index,
            client=client,
            occasion=f"round {round + 1}" if phase == 1 else _exploring(config, round),
            part=config.training_part,
            time_limit=config.faults.client_time_limit,
            learning_rates=tuple(config.rate_factor(client) * rate for rate in learning_rates),
            snapshots=snapshots,
            seed=derive_seed(config.seed, phase, round, client),
            update=config.client_update,
            upload=config.local.upload,
            max_loss_growth=config.faults.max_loss_growth,
        )
        for index, client in enumerate(clients)
    ]
