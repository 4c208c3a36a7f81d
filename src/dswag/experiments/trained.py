"""A run's training, done once and kept: what the paper's figures and tables are measured on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from jaxtyping import Float
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from dswag import batch_norm
from dswag.baselines import phases
from dswag.baselines.costs import Cost, Ledger, Metered, measured
from dswag.baselines.method import Done, Problem
from dswag.config import Config
from dswag.experiments.recipe import Experiment, Recipe
from dswag.experiments.run import test_engine
from dswag.files import replacing, write_text
from dswag.folds import Snapshots
from dswag.parameters import Layout
from dswag.server import Server
from dswag.training import evaluate, explore, synchronize

AboutT = TypeVar("AboutT", "Rounds", Cost)


@dataclass(frozen=True)
class RoundOutcome:
    """What one round of phase 1 came to, and what it took."""

    loss: float
    train_accuracy: float | None
    """On the clients' own data, where the threshold stop asks for it."""
    test_accuracy: float | None
    """None for models with BatchNorm layers, whose statistics would need all clients' data in every round."""
    seconds: float
    bytes: int
    """Both ways, all clients together."""


@dataclass(frozen=True)
class Rounds:
    """Phase 1 round by round, and what it cost."""

    outcomes: tuple[RoundOutcome, ...]
    cost: Cost


@dataclass(frozen=True, eq=False)
class Trained:
    """What both phases of training leave."""

    experiment: Experiment
    rounds: Rounds
    explore_cost: Cost
    theta: Float[Tensor, "d"]
    """θ_T."""
    snapshots: Float[Tensor, "s d"]
    """Of all explorers, in their order."""

    @property
    def seconds(self) -> float:
        """What both phases took, whenever that was."""
        return self.rounds.cost.seconds + self.explore_cost.seconds

    @cached_property
    def problem(self) -> Problem:
        """The run as what methods are compared on, with the phases that they share already done.

        What methods train beyond phase 1 has no threshold stop: it was for phase 1.
        """
        experiment = self.experiment
        clients = [experiment.dataset.train[part] for part in experiment.parts]
        problem = Problem(experiment.model, clients, replace(experiment.recipe, stop_accuracy=None))
        problem.done[phases.phase_1] = Done(self.theta, self.rounds.cost, frozenset())
        problem.done[phases.explored] = Done(self.snapshots, self.explore_cost, frozenset({phases.phase_1}))
        return problem


def train(experiment: Experiment, work: Path, advance: Callable[[str], None] = lambda _: None) -> Trained:
    """Phases 1 and 2, or what they left in the work folder where they ran before.

    Args:
        experiment: what to train.
        work: a folder for many runs, each in its own folder inside; those that differ in phase 2 share phase 1.
        advance: called with words after every round.
    """
    recipe = experiment.recipe
    settings = {name: value for name, value in asdict(recipe).items() if name not in _AFTERWARDS}
    first = {name: value for name, value in settings.items() if name not in _PHASE_2}
    folder = work / f"{recipe.dataset}-{recipe.model}-{_digest(first)}"
    folder.mkdir(parents=True, exist_ok=True)
    rounds, start = _kept(folder / "phase-1", first, Rounds, lambda: _phase_1(experiment, advance))
    second = folder / f"phase-2-{_digest(settings)}"
    cost, snapshots = _kept(second, settings, Cost, lambda: _phase_2(experiment, start))
    return Trained(experiment, rounds, cost, start, snapshots)


def _phase_1(experiment: Experiment, advance: Callable[[str], None]) -> tuple[Rounds, Tensor]:
    recipe, ledger = experiment.recipe, Ledger()
    test = None if batch_norm.layers(experiment.model) else test_engine(experiment)
    theta = Layout.of(experiment.model).flatten(experiment.model)
    outcomes: list[RoundOutcome] = []
    started = perf_counter()
    for done in synchronize(Metered(experiment.engine, ledger), Server(theta), recipe):
        seconds = perf_counter() - started
        accuracy = None if test is None else evaluate(test, done.theta, Config()).accuracy
        size = done.bytes_down + done.bytes_up
        outcomes.append(RoundOutcome(done.loss, done.accuracy, accuracy, seconds, size))
        theta = done.theta
        advance(f"round {done.number} of at most {recipe.rounds}")
        started = perf_counter()
    ledger.add(Cost(seconds=sum(outcome.seconds for outcome in outcomes)))
    return Rounds(tuple(outcomes), ledger.cost), theta


def _phase_2(experiment: Experiment, theta: Float[Tensor, "d"]) -> tuple[Cost, Tensor]:
    ledger = Ledger()
    with measured(ledger):
        engine = Metered(experiment.engine, ledger)
        snapshots = explore(engine, theta, experiment.recipe, Snapshots()).fold.result()
    return ledger.cost, snapshots


def _kept(
    path: Path, settings: Mapping[str, Any], kind: type[AboutT], work: Callable[[], tuple[AboutT, Tensor]]
) -> tuple[AboutT, Tensor]:
    """What the work gives, read from files of this name where it was done; the weights are written last."""
    about, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    settings = json.loads(json.dumps(settings))  # as they are read again
    if weights.exists():
        read = json.loads(about.read_text(encoding="utf-8"))
        if all(settings.get(name) == value for name, value in read["settings"].items()):
            return TypeAdapter(kind).validate_python(read["outcome"]), load_file(weights)["weights"]
    outcome, tensor = work()
    write_text(about, json.dumps({"settings": settings, "outcome": asdict(outcome)}, allow_nan=False) + "\n")
    with replacing(weights) as temporary:
        save_file({"weights": tensor.contiguous()}, temporary)
    return outcome, tensor


_AFTERWARDS = frozenset({"data_dir", "rank", "centering", "samples", "scale", "calibrate"})
"""Settings that neither phase of training depends on."""

_PHASE_2 = frozenset(
    {
        "explorers",
        "explore_epochs",
        "explore_learning_rate",
        "explore_final_learning_rate",
        "cycles",
        "snapshots_per_cycle",
    }
)


def _digest(settings: Mapping[str, Any]) -> str:
    """A short name of the settings that are not at their defaults, so that new ones change no old name."""
    changed = {name: value for name, value in settings.items() if value != getattr(Recipe, name)}
    return blake2b(json.dumps(changed, sort_keys=True).encode(), digest_size=6).hexdigest()
