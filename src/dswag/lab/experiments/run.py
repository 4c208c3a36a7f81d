"""One run from its recipe to its scores, saved as it goes."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.algorithms.calibration import calibrate
from dswag.algorithms.server_update import Server
from dswag.algorithms.training import collect, evaluate, explore, synchronize
from dswag.config import Config
from dswag.core.normalization import normalizing
from dswag.core.parameters import Layout
from dswag.core.threads import default_workers
from dswag.data.class_counts import ClassCounts
from dswag.engines.in_process import InProcess
from dswag.engines.recorded import Recorded
from dswag.federation.client_results import TrainResult
from dswag.federation.client_sampling import cohort_size
from dswag.federation.contract import Engine
from dswag.federation.folds import Both, Snapshots
from dswag.lab.baselines.phases import further
from dswag.lab.experiments.loss_landscape import points, survey
from dswag.lab.experiments.recipe import Experiment, Recipe
from dswag.lab.experiments.scoring import DEFAULT_KINDS, Scored, metrics, score_methods
from dswag.posterior.gaussian import GaussianPosterior, PosteriorFileError
from dswag.runs import RunFolder
from dswag.runs.checkpoint import Checkpoint
from dswag.runs.schema import ExploreRecord, RoundRecord


@dataclass(frozen=True)
class Starting:
    """Phase 1 begins, or goes on from a checkpoint."""

    rounds: int
    """Rounds that are done."""
    faults: tuple[str, ...]
    """What is wrong with newer checkpoints."""


@dataclass(frozen=True)
class Exploring:
    """Phase 2 begins."""

    explorers: int
    """How many answers it takes: each explorer gives one in each round trip."""


@dataclass(frozen=True)
class Evaluating:
    """The posterior is saved, and so many methods are to be scored."""

    methods: int


@dataclass(frozen=True)
class Surveying:
    """The loss around the posterior's mean is to be measured at so many points."""

    points: int


@dataclass(frozen=True)
class Continuing:
    """The epochs of phase 2 are spent on so many more rounds of phase 1, to compare with."""

    rounds: int


Event = Starting | RoundRecord | Exploring | ExploreRecord | Continuing | Evaluating | Scored | Surveying


def execute(
    experiment: Experiment, folder: RunFolder, *, advance: Callable[[], None] = lambda: None, keep_answers: bool = True
) -> Iterator[Event]:
    """Runs an experiment from where the folder says that it stands, and yields what happened once it is saved there.

    Saved are history and checkpoint after every round, the answers of explorers as they come, then the posterior, the
    landscape and the metrics. Stopped at any moment and called again, it gives bit for bit what it would have given:
    rounds go on from the checkpoint, and explorers whose answers are there are not asked again.

    Args:
        experiment: what to run.
        folder: of a new run, or of one that was stopped.
        advance: called for what happens between two events: an explorer or a round beyond phase 1 is done, the loss is
            measured at a point.
        keep_answers: whether explorers' answers are saved, and told of, as they come; not where several processes run.

    Raises:
        ClientError, TooFewClientsError, DivergenceError: from the algorithms.
        CheckpointError: checkpoints that cannot be read, or are of a run with other settings.
        RunFolderError: another process trains into the folder.
        SaveError: a file that cannot be written.
    """
    with folder.held():
        yield from _execute(experiment, folder, advance, keep_answers)


def _execute(
    experiment: Experiment, folder: RunFolder, advance: Callable[[], None], keep_answers: bool
) -> Iterator[Event]:
    """What `execute` does in a folder that it holds."""
    recipe, layout = experiment.recipe, Layout.of(experiment.model)
    folder.remove_leftovers()
    folder.save_partition(_class_counts(experiment))
    server, history = yield from _synchronize(experiment, folder, layout)

    yield Exploring(cohort_size(recipe.explore.explorers, recipe.clients) * recipe.explore_exchanges)
    engine = Recorded(experiment.engine, folder.answers, answered=advance) if keep_answers else experiment.engine
    posterior, snapshots, exploration = _explore(recipe, engine, server.theta, layout)
    folder.save_history(history, exploration)
    yield exploration
    if recipe.calibration.calibrate:
        posterior = _calibrated(experiment, folder, posterior)
    folder.save_posterior(posterior)

    seconds = {"phase 1": sum(record.seconds for record in history), "phase 2": exploration.seconds}
    continued = None
    if recipe.report.equal_budget:
        started = perf_counter()
        continued = yield from _continue(experiment, server, advance)
        seconds["same budget"] = perf_counter() - started

    yield Evaluating(len(DEFAULT_KINDS) + (2 if continued is None else 3))
    started = perf_counter()
    scored = []
    for outcome in score_methods(experiment, server.theta, posterior, snapshots, continued=continued):
        scored.append(outcome)
        yield outcome
    seconds["evaluation"] = perf_counter() - started
    seconds |= yield from _survey(experiment, folder, posterior, server.theta, advance)
    folder.save_metrics(metrics(scored, recipe, seconds))
    folder.remove_answers()


def _synchronize(
    experiment: Experiment, folder: RunFolder, layout: Layout
) -> Generator[Event, None, tuple[Server, list[RoundRecord]]]:
    """Phase 1 from the latest checkpoint on, saved as it goes; returns where it ends, and all of its rounds."""
    recipe = experiment.recipe
    checkpoint, faults = folder.latest_checkpoint()
    if checkpoint is not None:
        checkpoint.check(recipe)
    theta = layout.flatten(experiment.model)
    start = Server(theta) if checkpoint is None else checkpoint.server.to(theta.device)
    history = list(folder.rounds_before(checkpoint))
    yield Starting(start.round, faults)
    server, saved = start, start.round
    for record, server in _rounds(experiment, start):
        history.append(record)
        folder.save_history(history)
        if server.round % recipe.report.checkpoint_every == 0:
            folder.save_checkpoint(Checkpoint(server, layout, recipe.decisive()))
            saved = server.round
        yield record
    if saved < server.round:
        folder.save_checkpoint(Checkpoint(server, layout, recipe.decisive()))
    return server, history


def _rounds(experiment: Experiment, start: Server) -> Iterator[tuple[RoundRecord, Server]]:
    """Phase 1, with what each round took and the test accuracy after it.

    Models with BatchNorm have no test accuracy here: their statistics would need all clients' data in every round.
    """
    test = None if normalizing(experiment.model) else test_engine(experiment)
    rounds = synchronize(experiment.engine, start, experiment.recipe)
    while True:
        started = perf_counter()
        done = next(rounds, None)
        seconds = perf_counter() - started
        if done is None:
            return
        accuracy = None if test is None else evaluate(test, done.theta, Config()).accuracy
        yield (
            RoundRecord(
                done.number, done.loss, seconds, done.clients, accuracy, done.missing, done.bytes_down, done.bytes_up
            ),
            done.server,
        )


def _explore(
    recipe: Recipe, engine: Engine, theta: Float[Tensor, "d"], layout: Layout
) -> tuple[GaussianPosterior, Float[Tensor, "s d"], ExploreRecord]:
    """Phases 2 and 3: the posterior, all snapshots, and what it took."""
    fold: Both[TrainResult, GaussianPosterior, Tensor] = Both(collect(theta, recipe, layout), Snapshots())
    started = perf_counter()
    done = explore(engine, theta, recipe, fold)
    posterior, snapshots = fold.result()
    record = ExploreRecord(perf_counter() - started, done.clients, done.missing, done.bytes_down, done.bytes_up)
    return posterior, snapshots, record


def _continue(
    experiment: Experiment, server: Server, advance: Callable[[], None]
) -> Generator[Event, None, Float[Tensor, "d"]]:
    """θ after as many more epochs of phase 1 as phase 2 has, at its rates."""
    config = further(experiment.recipe.replaced(rounds=server.round, stop_accuracy=None))
    yield Continuing(config.train.rounds - server.round)
    theta = server.theta
    for done in synchronize(experiment.engine, server, config):
        theta = done.theta
        advance()
    return theta


def _class_counts(experiment: Experiment) -> ClassCounts:
    dataset = experiment.dataset
    return ClassCounts.of(experiment.parts, dataset.train.targets, dataset.class_names)


def _survey(
    experiment: Experiment,
    folder: RunFolder,
    posterior: GaussianPosterior,
    theta: Float[Tensor, "d"],
    advance: Callable[[], None],
) -> Generator[Event, None, dict[str, float]]:
    """The landscape, saved, where the run is to have one; returns the seconds that it took."""
    number = points(experiment.recipe, posterior)
    if not number:
        return {}
    yield Surveying(number)
    started = perf_counter()
    folder.save_landscape(survey(experiment, posterior, theta, advance))
    return {"landscape": perf_counter() - started}


def _calibrated(experiment: Experiment, folder: RunFolder, posterior: GaussianPosterior) -> GaussianPosterior:
    """The posterior with fitted scales, from the folder where that was done before."""
    calibrated = _saved(folder) or calibrate(experiment.engine, posterior, experiment.recipe)
    return calibrated.to(device=posterior.mean.device)


def _saved(folder: RunFolder) -> GaussianPosterior | None:
    """The posterior that is saved already, where one is and can be read."""
    try:
        return folder.posterior() if folder.has_posterior() else None
    except PosteriorFileError:
        return None


def test_engine(experiment: Experiment) -> InProcess:
    """The test set as the data of a few clients, so that all threads share the work."""
    test = experiment.dataset.test
    rows = torch.arange(len(test)).tensor_split(min(default_workers(), len(test)))
    return InProcess(experiment.model, [test[part] for part in rows])
