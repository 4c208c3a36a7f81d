"""A run's training, done once and kept: what the paper's figures and tables are measured on."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from dswag.algorithms.server_update import Server
from dswag.algorithms.training import evaluate, explore, synchronize
from dswag.config import Config
from dswag.core.atomic_files import held, remove_leftovers, write_text
from dswag.core.normalization import normalizing
from dswag.core.parameters import Layout
from dswag.core.validation import defaults
from dswag.engines.recorded import Recorded
from dswag.federation.folds import Snapshots
from dswag.lab.baselines import phases
from dswag.lab.baselines.costs import Cost, Ledger, Metered, measured
from dswag.lab.baselines.method import Done, Problem, Trial
from dswag.lab.experiments.recipe import Experiment, Recipe
from dswag.lab.experiments.run import test_engine
from dswag.runs.checkpoint import Checkpoint, CheckpointError, before

KeptT = TypeVar("KeptT")

SAVE_EVERY = 20.0
"""Seconds between checkpoints of phase 1: what is lost at most, beside the round under way, when it is killed."""


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
class Synchronized:
    """What phase 1 leaves."""

    experiment: Experiment
    rounds: Rounds
    theta: Float[Tensor, "d"]
    """θ_T."""

    @property
    def seconds(self) -> float:
        """What the phase took, whenever that was."""
        return self.rounds.cost.seconds


@dataclass(frozen=True, eq=False)
class Trained(Synchronized):
    """What both phases of training leave."""

    explore_cost: Cost
    snapshots: Float[Tensor, "s d"]
    """Of all explorers, in their order."""
    continued: Callable[[], Done]
    """Phase 1 for the whole budget, from where it stands in the work folder."""

    @property
    def seconds(self) -> float:
        """What both phases took, whenever that was."""
        return super().seconds + self.explore_cost.seconds

    @cached_property
    def problem(self) -> Problem:
        """The run as what methods are compared on, with the phases that they share already done.

        What methods train beyond phase 1 has no threshold stop: it was for phase 1.
        """
        experiment = self.experiment
        clients = [experiment.dataset.train[part] for part in experiment.parts]

        def resumed(stage: Callable[[Trial], Any]) -> Done | None:
            return self.continued() if stage == phases.federated else None

        config = experiment.recipe.replaced(stop_accuracy=None)
        problem = Problem(experiment.model, clients, config, resumed=resumed)
        problem.done[phases.phase_1] = Done(self.theta, self.rounds.cost, frozenset())
        problem.done[phases.explored] = Done(self.snapshots, self.explore_cost, frozenset({phases.phase_1}))
        return problem


def synchronized(experiment: Experiment, work: Path, advance: Callable[[str], None] = lambda _: None) -> Synchronized:
    """Phase 1, from where it stands in the work folder: what is done is read, and killed it goes on.

    Args:
        experiment: what to train.
        work: a folder for many runs, each in its own folder inside; those that differ in phase 2 share phase 1. What is
            kept there, the explorers' answers too, serves every figure on the same training, until somebody removes it.
        advance: called with words after every round.

    Raises:
        ClientError, DivergenceError: from the algorithms.
    """
    with _held(experiment, work, advance) as folder:
        rounds, theta = _phase_1(experiment, folder, advance)
    return Synchronized(experiment, rounds, theta)


def train(experiment: Experiment, work: Path, advance: Callable[[str], None] = lambda _: None) -> Trained:
    """Phases 1 and 2, from where they stand: as `synchronized`, then with the explorers that have not answered.

    Raises:
        ClientError, DivergenceError: from the algorithms.
        SaveError: an answer that cannot be written.
    """
    with _held(experiment, work, advance) as folder:
        rounds, theta = _phase_1(experiment, folder, advance)
        own = folder / f"phase-2-{_digest(_settings(experiment.recipe))}"
        cost, snapshots = _phase_2(experiment, theta, own)

    def continued() -> Done:
        recipe = phases.further(experiment.recipe.replaced(stop_accuracy=None))
        with _held(experiment, work, advance):
            start = Server(theta, experiment.recipe.train.rounds)
            further, end = _rounds(experiment, recipe, start, own / "phase-1-continued", advance)
        return Done(end, further.cost, frozenset({phases.phase_1}))

    return Trained(experiment, rounds, theta, cost, snapshots, continued)


@contextmanager
def _held(experiment: Experiment, work: Path, advance: Callable[[str], None]) -> Iterator[Path]:
    """The run's own folder, once no other process trains into it."""
    recipe = experiment.recipe
    folder = work / f"{recipe.data.dataset}-{recipe.data.model}-{_digest(_settings(recipe, but=_PHASE_2))}"
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, waiting=lambda: advance("another process trains this: waiting for it")):
        yield folder


@dataclass
class _Progress:
    """Phase 1 so far, beside its checkpoint."""

    outcomes: list[RoundOutcome] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    """Up to and with each round."""
    done: bool = False

    def cut(self, rounds: int) -> None:
        """Forgets what came after so many rounds."""
        self.done = self.done and len(self.outcomes) == rounds
        del self.outcomes[rounds:], self.costs[rounds:]


def _phase_1(experiment: Experiment, folder: Path, advance: Callable[[str], None]) -> tuple[Rounds, Tensor]:
    """All rounds and θ_T."""
    start = Server(Layout.of(experiment.model).flatten(experiment.model))
    return _rounds(experiment, experiment.recipe, start, folder / "phase-1", advance)


def _rounds(
    experiment: Experiment, recipe: Recipe, start: Server, stem: Path, advance: Callable[[str], None]
) -> tuple[Rounds, Tensor]:
    """All rounds of these settings from `start` on, and where they end.

    Removes what killed processes left, and in the end what is for one that is killed.
    """
    layout = Layout.of(experiment.model)
    settings = json.loads(json.dumps(_settings(recipe, but=_PHASE_2)))  # as they are read again
    about, weights = (stem.with_name(f"{stem.name}{ending}") for ending in (".json", ".checkpoint.safetensors"))
    remove_leftovers(about)
    remove_leftovers(weights)
    progress, server = _standing(about, weights, settings, start.round) or (_Progress(), start)
    server = server.to(start.theta.device)
    if not progress.done:
        test = None if normalizing(experiment.model) else test_engine(experiment)
        ledger = Ledger()
        ledger.add(progress.costs[-1] if progress.costs else Cost())

        def save() -> None:
            write_text(about, json.dumps(asdict(progress), allow_nan=False) + "\n")
            Checkpoint(server, layout, settings).save(weights)  # last, since it says how far the rest counts

        started = saved = perf_counter()
        for done in synchronize(Metered(experiment.engine, ledger), server, recipe):
            seconds = perf_counter() - started
            ledger.add(Cost(seconds=seconds))
            accuracy = None if test is None else evaluate(test, done.theta, Config()).accuracy
            size = done.bytes_down + done.bytes_up
            progress.outcomes.append(RoundOutcome(done.loss, done.accuracy, accuracy, seconds, size))
            progress.costs.append(ledger.cost)
            server = done.server
            if perf_counter() - saved >= SAVE_EVERY:
                save()
                saved = perf_counter()
            advance(f"round {done.number} of at most {recipe.train.rounds}")
            started = perf_counter()
        progress.done = True
        save()
    before(weights).unlink(missing_ok=True)
    return Rounds(tuple(progress.outcomes), progress.costs[-1]), server.theta


def _standing(about: Path, weights: Path, settings: Mapping[str, Any], first: int) -> tuple[_Progress, Server] | None:
    """How far the rounds after the `first` ones came before; None where they have to start from the beginning."""
    try:
        checkpoint, _ = Checkpoint.latest(weights)
    except CheckpointError:
        return None
    progress = _read(about, _Progress)
    if checkpoint is None or progress is None or len(progress.outcomes) < checkpoint.server.round - first:
        return None
    if any(settings.get(name) != value for name, value in checkpoint.settings.items()):  # new ones are at defaults
        return None
    progress.cut(checkpoint.server.round - first)
    return progress, checkpoint.server


def _phase_2(experiment: Experiment, theta: Float[Tensor, "d"], folder: Path) -> tuple[Cost, Tensor]:
    """What it cost, of which the seconds are those since training was last killed within it, and all snapshots."""
    ledger, about = Ledger(), folder / "cost.json"
    remove_leftovers(about)
    with measured(ledger):
        engine = Metered(Recorded(experiment.engine, folder), ledger)
        snapshots = explore(engine, theta, experiment.recipe, Snapshots()).fold.result()
    cost = _read(about, Cost)
    if cost is None:
        cost = ledger.cost
        write_text(about, json.dumps(asdict(cost)) + "\n")
    return cost, snapshots


def _read(path: Path, kind: type[KeptT]) -> KeptT | None:
    """What was written there; None where nothing was, or nothing that can be read."""
    try:
        read: KeptT = TypeAdapter(kind).validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return read


_AFTERWARDS = frozenset(
    {"data_dir", "rank", "columns", "samples", "kind", "scale", "calibrate", "equal_budget", "landscape_examples"}
)
"""Settings that neither phase of training depends on."""

_PHASE_2 = frozenset(
    {
        "explorers",
        "explore_epochs",
        "explore_rounds",
        "explore_learning_rate",
        "explore_final_learning_rate",
        "cycles",
        "snapshots_per_cycle",
    }
)


def _settings(recipe: Recipe, *, but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Those that training depends on; on BatchNorm statistics it does where rounds are evaluated to stop."""
    left_out = _AFTERWARDS | but | ({"batch_norm_examples"} if recipe.train.stop_accuracy is None else set())
    return {name: value for name, value in recipe.flat().items() if name not in left_out}


def _digest(settings: Mapping[str, Any]) -> str:
    """A short name of the settings that are not at their defaults, so that new ones change no old name."""
    usual = defaults(Recipe)
    changed = {name: value for name, value in settings.items() if value != usual[name]}
    return blake2b(json.dumps(changed, sort_keys=True).encode(), digest_size=6).hexdigest()
