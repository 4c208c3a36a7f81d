"""A federation of many nodes simulated on one machine, by Flower's own simulation engine."""

import os
from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

OutT = TypeVar("OutT")


def simulate(app: ClientApp, nodes: int, server: Callable[[Grid], OutT]) -> OutT:
    """What `server` returns, given the grid of a simulated federation, whose nodes' `partition-id` count from 0.

    The nodes run in as many processes as there are cores, one thread each.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    outcome: list[OutT] = []
    server_app = ServerApp()

    def main(grid: Grid, _: Context) -> None:
        outcome.append(server(grid))

    run_simulation(server_app, app, nodes, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return outcome[0]
