"""A recipe on Flower: the same run, with each client on a node of its own.

It stands apart from `recipe` and `run`, as it needs flwr.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

from torch import nn

from dswag.engines.flower import Context, Flower, Grid, Node, client_app, simulate
from dswag.lab.experiments.recipe import Experiment, MakeEngine, Recipe, build

OutT = TypeVar("OutT")


def node(recipe: Recipe, context: Context) -> Node:
    """The node that has the recipe's client of the same number as its `partition-id`."""
    experiment, empty = _built(recipe)
    number = int(context.node_config["partition-id"])
    return replace(empty, clients={number: experiment.dataset.train[experiment.parts[number]]})


def simulated(recipe: Recipe, work: Callable[[MakeEngine], OutT]) -> OutT:
    """What `work` makes of an engine, given to `build`, whose clients are nodes of a simulated federation.

    The results are those of the in-process engine with one thread a client, bit for bit. `work` runs in another thread.
    """

    def server(grid: Grid) -> OutT:
        def make_engine(model: nn.Module, clients: Sequence[Any], *, workers: int | None) -> Flower:
            return Flower(grid, model, len(clients))

        return work(make_engine)

    return simulate(client_app(partial(node, recipe)), recipe.clients, server)


@cache
def _built(recipe: Recipe) -> tuple[Experiment, Node]:
    """The experiment, and a node without clients; once for each process, whichever nodes it plays."""
    experiment = build(recipe)
    return experiment, Node(experiment.model, {})
