"""A federation of many nodes simulated on one machine, by Flower's own simulation engine."""

import logging
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

OutT = TypeVar("OutT")

BACKEND = {
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    "init_args": {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False},
}


def simulate(app: ClientApp, nodes: int, server: Callable[[Grid], OutT]) -> OutT:
    """What `server` returns when it is given the grid of a simulated federation; nodes' `partition-id` count from 0.

    The nodes run in as many processes as there are cores, one thread each. `server` runs in a thread; its error, or
    a KeyboardInterrupt, ends the simulation and is raised here.

    Raises:
        ImportError: Flower without its simulation engine.
    """
    if find_spec("ray") is None:
        raise ImportError("Flower's simulation needs Ray: pip install 'flwr[simulation]'")
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
        os.environ.setdefault(name, value)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    from flwr.simulation import run_simulation  # which needs Ray

    main, server_app = _Main(server), ServerApp()
    server_app.main()(main)
    try:
        run_simulation(server_app, app, nodes, backend_config=BACKEND)
    except KeyboardInterrupt:
        main.interrupted.set()
        if not main.began.is_set():  # nor will it
            raise
        main.ended.wait()
    return main.outcome()


class _Main(Generic[OutT]):
    """What the ServerApp does: runs `server` and keeps what came of it, for the thread that waits."""

    def __init__(self, server: Callable[[Grid], OutT]) -> None:
        self.server = server
        self.interrupted = threading.Event()
        self.began = threading.Event()
        self.ended = threading.Event()
        self.outcome: Callable[[], OutT] = _never_began

    def __call__(self, grid: Grid, _: Context) -> None:
        self.began.set()
        try:
            result = self.server(_Interruptible(grid, self.interrupted))
            self.outcome = lambda: result
        except BaseException as error:
            self.outcome = _raising(error)
        finally:
            self.ended.set()


class _Interruptible:
    """A grid whose use raises KeyboardInterrupt once it was interrupted, which only the main thread is told of."""

    def __init__(self, grid: Grid, interrupted: threading.Event) -> None:
        self._grid = grid
        self._interrupted = interrupted

    def __getattr__(self, name: str) -> Any:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        return getattr(self._grid, name)


def _never_began() -> Any:
    raise RuntimeError("Flower's simulation ended before it began: its log says why")


def _raising(error: BaseException) -> Callable[[], Any]:
    def outcome() -> Any:
        raise error

    return outcome
