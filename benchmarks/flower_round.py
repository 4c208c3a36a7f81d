"""The round of `benchmarks/engines.py` in Flower's simulation, in three ways.

"adapter" is the Flower engine of dswag. "bare" is the least that a user of Flower's Message API writes for federated
averaging. "strategy" is Flower's own FedAvg. All run on two Ray actors with one thread each; the first round does not
count.

    python benchmarks/flower_round.py --way adapter [--clients 50] [--rounds 7]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

import dswag
from dswag.client.training import TrainTask
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data.examples import Examples
from dswag.engines.flower import Flower, Node, client_app, simulate
from dswag.federation.aggregation import Mean
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import round_trip

EXAMPLES, BATCH, RATE = 600, 50, 0.05


def network() -> nn.Module:
    """The MLP."""
    with DrawFrom(generator_for(0)):
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


@cache
def examples(client: int) -> Examples:
    """A client's, made once in each process."""
    generator = generator_for(0, client)
    inputs = torch.randn(EXAMPLES, 784, generator=generator)
    return Examples(inputs, torch.randint(0, 10, (EXAMPLES,), generator=generator))


@cache
def empty() -> Node:
    """A node without clients, made once in each process."""
    return Node(network(), {})


def node(context: Context) -> Node:
    """The client on a node, as our engine takes it."""
    number = int(context.node_config["partition-id"])
    return replace(empty(), clients={number: examples(number)})


def train(message: Message, context: Context) -> Message:
    """The client on a node, as Flower's tutorials write it."""
    own = examples(int(context.node_config["partition-id"]))
    model = empty().model
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=RATE), torch.zeros(())
    for rows in torch.randperm(EXAMPLES, generator=generator_for(1)).split(BATCH):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(own.inputs[rows]), own.targets[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    metrics = MetricRecord({"num-examples": EXAMPLES, "loss": loss.item()})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


def adapter_server(grid: Grid, *, clients: int, rounds: int) -> list[float]:
    """Federated averaging on our engine."""
    model = network()
    theta = dswag.Layout.of(model).flatten(model)
    engine, update = Flower(grid, model, clients), ClientUpdate(batch_size=BATCH)
    tasks = [
        TrainTask(index=c, client=c, occasion="round", learning_rates=(RATE,), snapshots=(1,), seed=c, update=update)
        for c in range(clients)
    ]
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        theta = round_trip(engine, {"theta": theta}, tasks, Mean(theta, weighted=True)).fold.result().theta
        taken.append(time.perf_counter() - start)
    return taken


def bare_server(grid: Grid, *, clients: int, rounds: int) -> list[float]:
    """Federated averaging on Flower's messages."""
    nodes = nodes_of(grid, clients)
    state: dict[str, Any] = network().state_dict()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        content = RecordDict({"arrays": ArrayRecord(state), "config": ConfigRecord({"lr": RATE})})
        messages = [Message(content, dst_node_id=name, message_type="train") for name in nodes]
        total, state = 0, {}
        for reply in grid.send_and_receive(messages):
            number = int(reply.content["metrics"]["num-examples"])
            for name, value in reply.content["arrays"].to_torch_state_dict().items():
                state[name] = state.get(name, 0) + number * value
            total += number
        state = {name: value / total for name, value in state.items()}
        taken.append(time.perf_counter() - start)
    return taken


class Timed(FedAvg):  # type: ignore[misc]
    """Flower's strategy, with the moments at which its rounds begin."""

    def configure_train(self, *arguments: Any) -> Any:
        """Notes when a round begins."""
        self.starts = [*getattr(self, "starts", []), time.perf_counter()]
        return super().configure_train(*arguments)


def strategy_server(grid: Grid, *, clients: int, rounds: int) -> list[float]:
    """Federated averaging by Flower."""
    nodes_of(grid, clients)
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(network().state_dict()), num_rounds=rounds + 1)
    return [after - before for before, after in zip(strategy.starts, strategy.starts[1:], strict=False)]


def nodes_of(grid: Grid, clients: int) -> list[int]:
    """The nodes, once all are there."""
    while len(nodes := sorted(grid.get_node_ids())) < clients:
        time.sleep(0.1)
    return nodes


def tutorial_app() -> ClientApp:
    """The ClientApp of "bare" and "strategy"."""
    app = ClientApp()
    app.train()(train)
    return app


WAYS: dict[str, tuple[Callable[[], ClientApp], Callable[..., list[float]]]] = {
    "adapter": (partial(client_app, node), adapter_server),
    "bare": (tutorial_app, bare_server),
    "strategy": (tutorial_app, strategy_server),
}


def main() -> None:
    """Prints the seconds of each round after the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, default="adapter")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_app, server = WAYS[arguments.way]
    work = partial(server, clients=arguments.clients, rounds=arguments.rounds + 1)
    print(json.dumps(simulate(make_app(), arguments.clients, work)[1:]))


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    import_module("flower_round").main()  # by its name, which the processes of the nodes can import
