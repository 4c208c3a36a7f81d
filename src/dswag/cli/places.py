"""Where the clients of a training run are: `--engine`."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dswag.cli.options import Train
from dswag.config import ConfigError, differences
from dswag.core.serialization import as_bytes, as_text
from dswag.engines.distributed import Distributed
from dswag.engines.in_process import InProcess
from dswag.engines.ranks import Ranks, joined
from dswag.lab.experiments.recipe import MakeEngine, Recipe


@dataclass(frozen=True)
class Place:
    """What a run needs to know of where its clients are."""

    make_engine: MakeEngine
    keeps_answers: bool = True
    """Whether the explorers' answers come to this process, to be saved as they come."""
    leads: bool = True
    """Whether this process writes the run folder, and says how far the run is."""
    leader_says: Callable[[str], str] = str
    """What the leading process says to all, who wait for it."""


def at_place(options: Train, recipe: Recipe, run: Callable[[Place], None]) -> None:
    """Calls `run` where the options want the clients to be; every process of a run over several calls it.

    Raises:
        ConfigError: several processes that would each train alone, into the same folder, or that have other settings;
            or a package that is missing.
        RankError: processes that do not find one another.
    """
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if options.engine != "distributed" and processes > 1:
        raise ConfigError(f"WORLD_SIZE says that this is one of {processes} processes: pass --engine distributed")
    match options.engine:
        case "in-process":
            run(Place(InProcess))
        case "distributed":
            with joined(timeout=options.rank_timeout) as ranks:
                _check_settings(ranks, recipe)
                make_engine = partial(Distributed, ranks=ranks)
                run(Place(make_engine, keeps_answers=False, leads=ranks.rank == 0, leader_says=ranks.leader_says))
        case "flower":
            try:
                from dswag.lab.experiments.federation import simulated  # which needs flwr

                simulated(recipe, lambda make_engine: run(Place(make_engine)))
            except ImportError as error:
                raise ConfigError(str(error)) from error


def _check_settings(ranks: Ranks, recipe: Recipe) -> None:
    """Raises ConfigError, on all ranks alike, where the ranks were started with different settings."""
    mine = recipe.decisive()
    for rank, said in enumerate(ranks.tell({"settings": as_bytes(json.dumps(mine))})):
        differing = differences(mine, json.loads(as_text(said["settings"])))
        if differing:
            raise ConfigError(f"rank {rank} has other settings than rank {ranks.rank}: {', '.join(differing)}")
