"""A recipe on Flower: the same run, with each client on a node of its own.

It stands apart from `recipe` and `run`, as it needs flwr.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

from dswag.engines.flower import Context, Flower, Node, client_app, simulate
from dswag.experiments.recipe import Experiment, Recipe, build

OutT = TypeVar("OutT")


def node(recipe: Recipe, context: Context) -> Node:
    """The node that has the recipe's client of the same number as its `partition-id`."""
    experiment, empty = _built(recipe)
    number = int(context.node_config["partition-id"])
    return replace(empty, clients={number: experiment.dataset.train[experiment.parts[number]]})


def simulated(experiment: Experiment, work: Callable[[Experiment], OutT]) -> OutT:
    """What `work` makes of the experiment while its clients run in a simulated federation.

    The results are those of the in-process engine with one thread a client, bit for bit. `work` runs in another thread.
    """
    recipe = experiment.recipe
    app = client_app(partial(node, recipe))
    return simulate(
        app,
        recipe.clients,
        lambda grid: work(replace(experiment, engine=Flower(grid, experiment.model, recipe.clients))),
    )


@cache
def _built(recipe: Recipe) -> tuple[Experiment, Node]:
    """The experiment, and a node without clients; once for each process, whichever nodes it plays."""
    experiment = build(recipe)
    return experiment, Node(experiment.model, {})
