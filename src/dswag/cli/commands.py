"""What the commands do that work on runs."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from dswag.algorithms.prediction import predictive
from dswag.cli import console
from dswag.cli.inputs import read_images
from dswag.cli.logging_runs import logged
from dswag.cli.options import Calibrate, Evaluate, Predict, Report, Train
from dswag.cli.outputs import to_json, write
from dswag.cli.pages import page
from dswag.cli.places import Place, at_place
from dswag.cli.predictions import as_csv, as_rows
from dswag.config import ConfigError
from dswag.core.parameters import Layout
from dswag.evaluation.metrics import Scores
from dswag.lab.experiments.loss_landscape import points, survey
from dswag.lab.experiments.recipe import Experiment, Recipe, build
from dswag.lab.experiments.run import Continuing, Evaluating, Event, Exploring, Starting, Surveying, execute
from dswag.lab.experiments.scoring import ENSEMBLE, FEDAVG, PHASE_1, Scored, metrics, prediction_seed, score_methods
from dswag.lab.experiments.sets import sets_of
from dswag.posterior.gaussian import GaussianPosterior
from dswag.runs import MANIFEST, REPORT, RunFolder, RunFolderError, Unwritten
from dswag.runs.loggers import LOGGERS, Log
from dswag.runs.schema import RoundRecord

RUNS = Path("runs")


def train(options: Train) -> None:
    """Runs a recipe into a new run folder, or goes on with a run that was stopped.

    Raises:
        KeyboardInterrupt: with what is saved, after Ctrl-C.
    """
    if options.overwrite and options.output is None and options.resume is None:
        raise ConfigError("--overwrite needs --output: without it every run goes into a new folder")
    if options.rank_timeout <= 0:
        raise ConfigError(f"--rank-timeout must be above 0 seconds, got {options.rank_timeout:g}")
    folder = None if options.resume is None else RunFolder.open(options.resume)
    recipe = options.recipe() if folder is None else options.resumed(folder.config(Recipe))
    at_place(options, recipe, lambda place: _train(options, recipe, folder, place))


def _train(options: Train, recipe: Recipe, folder: RunFolder | None, place: Place) -> None:
    if folder is not None and folder.metrics() is not None:
        if place.leads:
            _tell_of_complete(folder, as_json=options.json)
        return
    if not place.leads:  # the data may be on their way, and the folder be cleared, until the leader says where it is
        unwritten = Unwritten(Path(place.leader_says("")))
        experiment = build(recipe, make_engine=place.make_engine, workers=options.workers)
        for _ in execute(experiment, unwritten, keep_answers=place.keeps_answers):
            pass
        return
    experiment = build(recipe, make_engine=place.make_engine, workers=options.workers, progress=True)
    folder = _new_folder(options, experiment) if folder is None else folder
    place.leader_says(str(folder.path.resolve()))
    with nullcontext() if options.log is None else LOGGERS[options.log[0]](options.log[1]) as log:
        _run(experiment, folder, log, keep_answers=place.keeps_answers)
    _show(folder, folder.save_report(page([folder])), as_json=options.json)


def evaluate(options: Evaluate, *, quiet: bool = False) -> None:
    """Scores the methods of a run again; what the snapshots are needed for stays as it was measured in training."""
    folder = RunFolder.open(options.run)
    with folder.held() if options.save else nullcontext():
        outcomes = _evaluated(folder, options)
    scores = {outcome.method: outcome.scores for outcome in outcomes}
    clients = {outcome.method: outcome.clients for outcome in outcomes if outcome.clients} if options.per_client else {}
    if options.json:
        by_client = (
            {"clients": {name: [asdict(one) for one in own] for name, own in clients.items()}} if clients else {}
        )
        console.emit(to_json({"run": str(folder.path), "methods": _as_data(scores), **by_client}))
    elif not quiet:
        console.show_scores(scores)
        if clients:
            console.show_clients(clients)


def _evaluated(folder: RunFolder, options: Evaluate) -> list[Scored]:
    """What each method scores, saved if that is asked for."""
    before = folder.metrics()
    experiment, posterior = opened(folder, options)
    checkpoint = folder.checkpoint()
    if checkpoint.layout != Layout.of(experiment.model):
        raise RunFolderError(f"the checkpoint in {folder.path} is of another model than its settings describe")
    outcomes = []
    with console.display() as display:
        display.begin("evaluation", len(options.kind) + 1)
        for outcome in score_methods(experiment, checkpoint.server.theta, posterior, kinds=options.kind):
            outcomes.append(outcome)
            display.advance(_described(outcome))
        if number := points(experiment.recipe, posterior) if options.save else 0:
            display.begin("landscape: point", number)
            folder.save_landscape(survey(experiment, posterior, checkpoint.server.theta, display.advance))
    for method in (FEDAVG, ENSEMBLE):  # they need weights that the folder does not keep
        if before is not None and method in before.scores:
            difference = before.nll_differences.get(method) if before.baseline == PHASE_1 else None
            outcomes.append(Scored(method, before.scores[method], before.reliability[method], difference))
    if options.save:
        folder.save_metrics(metrics(outcomes, experiment.recipe, {} if before is None else before.seconds))
        folder.save_report(page([folder]))
    return outcomes


def predict(options: Predict) -> None:
    """Predicts images with the posterior of a run."""
    if not options.inputs:
        raise ConfigError("predict needs images: name at least one file")
    if options.output is not None and options.output.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"the output must end in .csv or .json, got {options.output}")
    if not 0 < options.alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, got {options.alpha:g}")
    folder = RunFolder.open(options.run)
    experiment, posterior = opened(folder, options)
    channels, height, width = experiment.dataset.train.inputs.shape[1:]
    names, images = read_images(options.inputs, (channels, height, width), resize=options.resize)
    recipe = experiment.recipe
    predicted = predictive(
        experiment.model,
        posterior,
        images,
        samples=recipe.predict.samples,
        seed=prediction_seed(recipe),
        kind=options.kind,
        scale=recipe.predict.scale,
        engine=experiment.engine,
        batch_norm_examples=recipe.predict.batch_norm_examples,
    )
    outcome = folder.metrics()
    sets = None
    if outcome is not None and outcome.sets is not None and options.kind == "swag":
        sets = sets_of(outcome.sets, predicted.probabilities, options.alpha)
    rows = as_rows(names, predicted, experiment.dataset.class_names, sets)
    if options.output is not None:
        write(options.output, to_json(rows) + "\n" if options.output.suffix.lower() == ".json" else as_csv(rows))
        console.say(f"{len(rows)} predictions written to {options.output}")
    if options.json:
        console.emit(to_json(rows))
    elif options.output is None:
        console.emit(as_csv(rows).rstrip("\n"))


def report(options: Report) -> None:
    """Writes one page over the runs."""
    if not options.runs:
        raise ConfigError("report needs runs: name at least one folder that dswag train wrote")
    folders = [RunFolder.open(path) for path in options.runs]
    html = page(folders)
    if options.output is None and len(folders) == 1:
        path = folders[0].save_report(html)
    else:
        path = options.output or Path("report.html")
        write(path, html)
    console.emit(to_json({"report": str(path)}) if options.json else str(path))


def _tell_of_complete(folder: RunFolder, *, as_json: bool) -> None:
    console.say(f"{folder.path} is complete: there is nothing to resume")
    folder.remove_leftovers()
    folder.remove_answers()  # a process that was killed may not have come that far
    complete = (folder.path / MANIFEST).exists() and (folder.path / REPORT).exists()
    _show(folder, folder.path / REPORT if complete else folder.save_report(page([folder])), as_json=as_json)


def _new_folder(options: Train, experiment: Experiment) -> RunFolder:
    recipe = experiment.recipe
    if options.output is None:
        return RunFolder.create_next(RUNS, f"{experiment.dataset.name}-{recipe.data.model}", recipe)
    return RunFolder.create(options.output, recipe, overwrite=options.overwrite)


def _run(experiment: Experiment, folder: RunFolder, log: Log | None, *, keep_answers: bool) -> None:
    """Runs the experiment to its end."""
    console.say(f"training into {folder.path}")
    try:
        with console.display() as display:
            events = execute(experiment, folder, advance=display.advance, keep_answers=keep_answers)
            _follow(experiment, events if log is None else logged(events, log), display)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_saved(folder)) from None


def _follow(experiment: Experiment, events: Iterable[Event], display: console.Display) -> None:
    """Runs the experiment and shows how far it is."""
    for event in events:
        match event:
            case Starting():
                for fault in event.faults:
                    console.say(f"going on from the checkpoint before, of round {event.rounds}: {fault}")
                display.begin("phase 1: round", experiment.recipe.train.rounds, event.rounds)
            case RoundRecord():
                accuracy = "" if event.test_accuracy is None else f", accuracy {event.test_accuracy:.4f}"
                left_out = f", without {len(event.missing)} of {len(event.clients)} clients" if event.missing else ""
                display.advance(f"loss {event.loss:.4f}{accuracy}{left_out}")
            case Exploring():
                display.begin("phase 2: explorer", event.explorers)
            case Continuing():
                display.begin("same budget: round", event.rounds)
            case Evaluating():
                display.begin("evaluation", event.methods)
            case Surveying():
                display.begin("landscape: point", event.points)
            case Scored():
                display.advance(_described(event))


def _described(outcome: Scored) -> str:
    return f"{outcome.method}, accuracy {outcome.scores.accuracy:.4f}, NLL {outcome.scores.nll:.4f}"


def _what_is_saved(folder: RunFolder) -> str:
    """For somebody who stopped the training."""
    rounds, explorers = len(folder.history()), len(list(folder.answers.glob("*.safetensors")))
    if not rounds:
        return f"nothing but the settings is saved in {folder.path}, for no round was completed"
    saved = f"{rounds} round{'' if rounds == 1 else 's'}"
    if explorers:
        saved += f" and {explorers} explorer{'' if explorers == 1 else 's'}"
    return f"{saved} are saved in {folder.path}; go on with: dswag train --resume {folder.path}"


def opened(folder: RunFolder, options: Evaluate | Calibrate | Predict) -> tuple[Experiment, GaussianPosterior]:
    """The run's experiment, with the settings that the options change, and its posterior."""
    posterior = folder.posterior()
    changed = {name: getattr(options, name, None) for name in ("samples", "scale", "landscape_examples", "data_dir")}
    given = {name: value for name, value in changed.items() if value is not None}
    recipe = Recipe.checked({**folder.config(Recipe).flat(), **given}, source="flags")
    experiment = build(recipe, progress=True)
    if posterior.layout != Layout.of(experiment.model):
        raise RunFolderError(f"the posterior in {folder.path} is of another model than its settings describe")
    return experiment, posterior


def _show(folder: RunFolder, written: Path, *, as_json: bool) -> None:
    """The outcome of a complete run."""
    outcome = folder.metrics()
    if outcome is None:
        raise RunFolderError(f"{folder.path} has no metrics: evaluate it with dswag evaluate {folder.path} --save")
    if as_json:
        result = {
            "run": str(folder.path),
            "report": str(written),
            "methods": _as_data(outcome.scores),
            "seconds": outcome.seconds,
        }
        console.emit(to_json(result))
    else:
        console.show_scores(outcome.scores)
        console.emit(f"report: {written}")


def _as_data(scores: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    return {method: asdict(values) for method, values in scores.items()}
