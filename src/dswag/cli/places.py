"""Where the clients of a training run are: `--engine`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dswag.cli.options import Train
from dswag.config import ConfigError
from dswag.engines.distributed import Distributed
from dswag.engines.in_process import InProcess
from dswag.engines.ranks import joined
from dswag.experiments.recipe import MakeEngine


@dataclass(frozen=True)
class Place:
    """What a run needs to know of where its clients are."""

    make_engine: MakeEngine
    leads: bool = True
    """Whether this process writes the run folder, and says how far the run is."""
    keeps_answers: bool = True
    """Whether explorers' answers are saved as they come, which needs one process that all of them come to."""


def at_place(options: Train, run: Callable[[Place], None]) -> None:
    """Calls `run` where the options want the clients to be; every process of a run over several calls it."""
    match options.engine:
        case "in-process":
            run(Place(InProcess))
        case "distributed":
            with joined(timeout=options.rank_timeout) as ranks:
                run(Place(partial(Distributed, ranks=ranks), leads=ranks.rank == 0, keeps_answers=False))
        case "flower":
            try:
                from dswag.experiments.federation import simulated  # which needs flwr

                simulated(options.recipe(), lambda make_engine: run(Place(make_engine)))
            except ImportError as error:
                raise ConfigError(str(error)) from error
