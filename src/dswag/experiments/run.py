"""One run from its recipe to its scores, saved as it goes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dswag import batch_norm
from dswag.cohorts import cohort_size
from dswag.config import Config
from dswag.data.class_counts import ClassCounts
from dswag.engines.in_process import InProcess
from dswag.experiments.recipe import Experiment
from dswag.experiments.scoring import DEFAULT_KINDS, Scored, metrics, score_methods
from dswag.folds import Both, Snapshots
from dswag.moments import Moments
from dswag.parameters import Layout
from dswag.posterior import GaussianPosterior
from dswag.run_folder import Checkpoint, RoundRecord, RunFolder
from dswag.scaling import calibrate
from dswag.server import Server
from dswag.tasks import Fold, TrainResult
from dswag.threads import default_workers
from dswag.training import collect, evaluate, explore, synchronize


@dataclass(frozen=True)
class Exploring:
    """Phase 2 begins."""

    explorers: int


@dataclass(frozen=True)
class Evaluating:
    """The posterior is saved, and so many methods are to be scored."""

    methods: int


Event = RoundRecord | Exploring | Evaluating | Scored


def execute(
    experiment: Experiment, folder: RunFolder, *, explored: Callable[[], None] = lambda: None
) -> Iterator[Event]:
    """Runs an experiment, and yields what happened once it is saved in the folder.

    A KeyboardInterrupt in phase 2 leaves the posterior of the snapshots that came in, where there are at least two.

    Args:
        experiment: what to run.
        folder: where everything goes: the partition, history and checkpoint after every round, the posterior, the
            metrics.
        explored: called whenever an explorer is done, the one thing that happens inside a single exchange.

    Raises:
        ClientError: a client failed.
    """
    recipe, layout = experiment.recipe, Layout.of(experiment.model)
    dataset = experiment.dataset
    folder.save_partition(ClassCounts.of(experiment.parts, dataset.train.targets, dataset.class_names))
    history: list[RoundRecord] = []
    for record, theta in _rounds(experiment, layout.flatten(experiment.model)):
        history.append(record)
        folder.save_checkpoint(Checkpoint(theta, layout, record.round))
        folder.save_history(history)
        yield record

    yield Exploring(cohort_size(recipe.explorers, recipe.clients))
    started = perf_counter()
    posterior, snapshots = _explore(experiment, theta, layout, folder, explored)
    explore_seconds = perf_counter() - started
    if recipe.calibrate:
        posterior = calibrate(experiment.engine, posterior, recipe)
        folder.save_posterior(posterior)

    yield Evaluating(len(DEFAULT_KINDS) + 2)
    started = perf_counter()
    scored = []
    for outcome in score_methods(experiment, theta, posterior, snapshots):
        scored.append(outcome)
        yield outcome
    seconds = {
        "phase 1": sum(record.seconds for record in history),
        "phase 2": explore_seconds,
        "evaluation": perf_counter() - started,
    }
    folder.save_metrics(metrics(scored, recipe, seconds))


def _rounds(experiment: Experiment, theta: Float[Tensor, "d"]) -> Iterator[tuple[RoundRecord, Float[Tensor, "d"]]]:
    """Phase 1, with what each round took and the test accuracy after it.

    Models with BatchNorm have no test accuracy here: their statistics would need all clients' data in every round.
    """
    test = None if batch_norm.layers(experiment.model) else test_engine(experiment)
    rounds = synchronize(experiment.engine, Server(theta), experiment.recipe)
    while True:
        started = perf_counter()
        done = next(rounds, None)
        seconds = perf_counter() - started
        if done is None:
            return
        accuracy = None if test is None else evaluate(test, done.theta, Config()).accuracy
        yield RoundRecord(done.number, done.loss, seconds, done.clients, accuracy), done.theta


def _explore(
    experiment: Experiment,
    theta: Float[Tensor, "d"],
    layout: Layout,
    folder: RunFolder,
    explored: Callable[[], None],
) -> tuple[GaussianPosterior, Float[Tensor, "s d"]]:
    """Phases 2 and 3: the posterior, saved, and all snapshots."""
    recipe = experiment.recipe
    snapshots = Snapshots()
    both: Both[TrainResult, GaussianPosterior, Tensor] = Both(collect(theta, recipe, layout), snapshots)
    fold = _Watched(both, explored)
    try:
        posterior, thetas = explore(experiment.engine, theta, recipe, fold).fold.result()
    except KeyboardInterrupt:
        # The interrupt may have come in the middle of an addition to the moments, never of one to the list.
        thetas = snapshots.result() if fold.count else theta.new_empty(0, layout.d)
        if len(thetas) >= 2:
            folder.save_posterior(_posterior_of(thetas, collect(theta, recipe, layout)))
        raise
    folder.save_posterior(posterior)
    return posterior, thetas


def _posterior_of(thetas: Float[Tensor, "s d"], moments: Moments) -> GaussianPosterior:
    for theta in thetas:
        moments.add(theta)
    return moments.posterior()


def test_engine(experiment: Experiment) -> InProcess:
    """The test set as the data of a few clients, so that all threads share the work."""
    test = experiment.dataset.test
    rows = torch.arange(len(test)).tensor_split(min(default_workers(), len(test)))
    return InProcess(experiment.model, [test[part] for part in rows])


ResultT = TypeVar("ResultT")
OutcomeT = TypeVar("OutcomeT")


class _Watched(Generic[ResultT, OutcomeT]):
    """A fold that counts the results it took in, in place, and tells after each."""

    def __init__(self, fold: Fold[ResultT, OutcomeT], taken_in: Callable[[], None]) -> None:
        self.fold = fold
        self.taken_in = taken_in
        self.count = 0

    def add(self, result: ResultT) -> None:
        """Takes the result in, and tells."""
        self.fold.add(result)
        self.count += 1
        self.taken_in()

    def merge(self, other: Self) -> None:
        """Merges the folds within."""
        self.fold.merge(other.fold)
        self.count += other.count

    def result(self) -> OutcomeT:
        """What the fold within gives."""
        return self.fold.result()
