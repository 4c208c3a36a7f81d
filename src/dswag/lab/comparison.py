"""Many methods on one problem, over several seeds: run, scored and saved one by one."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from types import MappingProxyType
from typing import Literal, Self

import torch
from pydantic import TypeAdapter, ValidationError

from dswag.config import ConfigError, differences
from dswag.core.atomic_files import remove_leftovers, saving, write_text
from dswag.evaluation.metrics import Scores, score
from dswag.evaluation.out_of_distribution import Detection, detect
from dswag.evaluation.temperature import fit_temperature, temper
from dswag.lab.baselines import METHODS, Method
from dswag.lab.baselines.costs import Cost
from dswag.lab.baselines.method import Predictor, Problem, complete
from dswag.lab.experiments import foreign
from dswag.lab.experiments.recipe import Experiment, Recipe, build


class ComparisonError(ValueError):
    """A folder that holds a comparison of other settings, or results that are damaged."""


@dataclass(frozen=True)
class Outcome:
    """Scores and costs of one method with one seed."""

    method: str
    seed: int
    scores: Scores
    tempered: Scores
    """After a temperature that was fitted to the clients' held-out examples; as they are where there are none."""
    detection: Mapping[str, Detection]
    """How well each score of uncertainty tells out-of-distribution inputs."""
    epochs: float
    """Gradients, in passes over all training examples."""
    cost: Cost
    prediction_seconds: float
    """For the test set."""


@dataclass(frozen=True)
class Failure:
    """A method that failed with a seed, and why."""

    method: str
    seed: int
    cause: str


@dataclass(frozen=True)
class Spread:
    """Over seeds."""

    mean: float
    std: float | None
    """Divided by the number of seeds less one; None for a single seed."""


@dataclass(frozen=True)
class Measure:
    """A quantity in which methods are compared."""

    title: str
    read: Callable[[Outcome], float]
    better: Literal["higher", "lower"] | None = None
    factor: float = 1.0
    """What values are multiplied by where they are shown."""
    decimals: int = 4

    def text(self, spread: Spread) -> str:
        """The mean, and the standard deviation if there is one."""
        shown = f"{self.factor * spread.mean:,.{self.decimals}f}"
        return shown if spread.std is None else f"{shown} ± {self.factor * spread.std:,.{self.decimals}f}"


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "accuracy": Measure("accuracy (%)", lambda outcome: outcome.scores.accuracy, "higher", 100, 2),
        "nll": Measure("NLL", lambda outcome: outcome.scores.nll, "lower"),
        "ece": Measure("ECE", lambda outcome: outcome.scores.ece_equal_mass, "lower"),
        "nll_tempered": Measure("NLL + T", lambda outcome: outcome.tempered.nll, "lower"),
        "ece_tempered": Measure("ECE + T", lambda outcome: outcome.tempered.ece_equal_mass, "lower"),
        "brier": Measure("Brier", lambda outcome: outcome.scores.brier, "lower"),
        "auroc": Measure("AUROC", lambda outcome: outcome.detection["entropy"].auroc, "higher"),
        "fpr95": Measure("FPR95", lambda outcome: outcome.detection["entropy"].fpr95, "lower"),
        "epochs": Measure("epochs", lambda outcome: outcome.epochs, decimals=1),
        "steps": Measure("steps in a row", lambda outcome: outcome.cost.steps, "lower", decimals=0),
        "bytes": Measure("MB sent", lambda outcome: outcome.cost.bytes, "lower", 1e-6, 0),
        "seconds": Measure("seconds", lambda outcome: outcome.cost.seconds, "lower", decimals=1),
        "prediction_seconds": Measure(
            "seconds to predict", lambda outcome: outcome.prediction_seconds, "lower", decimals=2
        ),
        "memory": Measure("peak MB", lambda outcome: outcome.cost.memory, "lower", 1e-6, 0),
    }
)
"""What methods are compared in, by the name that JSON has for it."""


def chosen(names: Sequence[str], recipe: Recipe) -> list[Method]:
    """The methods of these names.

    Raises:
        ConfigError: an unknown name, or settings with which they cannot be compared.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ConfigError(f"methods must be some of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
    if recipe.train.stop_accuracy is not None:
        raise ConfigError("methods are compared at one budget: leave stop_accuracy out")
    first_rate, last_rate = recipe.explore_learning_rates
    if last_rate > first_rate:
        raise ConfigError("methods go on at rates that fall: explore_final_learning_rate must be the smaller one")
    methods = [METHODS[name] for name in dict.fromkeys(names)]
    tuning = [method.name for method in methods if method.holdout]
    if tuning and not recipe.calibration.holdout:
        raise ConfigError(f"{', '.join(tuning)} are tuned on held-out examples: set holdout, such as 0.1")
    return methods


def compare_methods(
    recipe: Recipe,
    methods: Sequence[Method],
    seeds: Sequence[int],
    folder: "ComparisonFolder",
    *,
    workers: int | None = None,
) -> Iterator[Outcome | Failure]:
    """The outcome of every method with every seed, once it is saved; what the folder already holds is not run again.

    Methods of one seed share what they have in common, such as phase 1. A method that fails, such as one that diverges,
    does not stop the others; it is tried again the next time.
    """
    for seed in seeds:
        prepared: tuple[Experiment, Problem] | None = None
        for method in methods:
            outcome = folder.outcome(method.name, seed)
            if outcome is None:
                prepared = prepared or _prepare(recipe.replaced(seed=seed), workers)
                try:
                    outcome = measure(method, *prepared)
                except RuntimeError as error:  # clients that fail, and what does not converge
                    yield Failure(method.name, seed, str(error))
                    continue
                folder.save(outcome)
            yield outcome


def _prepare(recipe: Recipe, workers: int | None) -> tuple[Experiment, Problem]:
    """The experiment, and what every method is given of it."""
    experiment = build(recipe, workers=workers, progress=True)
    clients = [experiment.dataset.train[part] for part in experiment.parts]
    return experiment, Problem(experiment.model, clients, recipe, workers=workers)


def measure(method: Method, experiment: Experiment, problem: Problem) -> Outcome:
    """Runs the method, and scores it on the test set and on inputs that are out of distribution."""
    predictor, cost = complete(method, problem)
    test = experiment.dataset.test
    started = perf_counter()
    prediction = predictor(test.inputs)
    seconds = perf_counter() - started
    probabilities = prediction.probabilities.cpu()
    return Outcome(
        method.name,
        problem.config.seed,
        score(probabilities, test.targets),
        score(temper(probabilities, _temperature(predictor, problem)), test.targets),
        detect(
            prediction, predictor(foreign.inputs(experiment.dataset, experiment.recipe.data.data_dir, progress=True))
        ),
        cost.examples / problem.num_examples,
        cost,
        seconds,
    )


def _temperature(predictor: Predictor, problem: Problem) -> float:
    """That with which the predictions fit the clients' held-out examples best; 1 where there are none."""
    kept = problem.held_out_examples
    if not kept:
        return 1.0
    inputs, targets = (torch.cat([getattr(data, name) for data in kept]) for name in ("inputs", "targets"))
    return fit_temperature(predictor(inputs).probabilities.cpu(), targets.cpu())


def summary(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Spread]]:
    """By method, in the order in which they come first: every measure over the seeds."""
    names = dict.fromkeys(outcome.method for outcome in outcomes)
    return {name: _spreads([outcome for outcome in outcomes if outcome.method == name]) for name in names}


def _spreads(outcomes: Sequence[Outcome]) -> dict[str, Spread]:
    values = {name: [float(measure.read(outcome)) for outcome in outcomes] for name, measure in MEASURES.items()}
    return {name: Spread(mean(found), stdev(found) if len(found) > 1 else None) for name, found in values.items()}


@dataclass(frozen=True)
class ComparisonFolder:
    """The files of a comparison: its settings, and a file for each method and seed, replaced as a whole."""

    path: Path

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, overwrite: bool = False) -> Self:
        """The folder for these settings, whatever their seed; made where it does not exist.

        Raises:
            ComparisonError: a folder with results of other settings, and which they are; or one that is not writable.
        """
        settings = path / "config.toml"
        if settings.exists() and not overwrite:
            before, now = (replace(r, seed=0).decisive() for r in (Recipe.from_toml(settings), recipe))
            differing = differences(before, now)
            if differing:
                raise ComparisonError(
                    f"{path} holds results of other settings: {', '.join(differing)}; "
                    "choose another --output, or pass --overwrite"
                )
            return cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for result in path.glob("*-seed-*.json"):
                result.unlink()
            recipe.to_toml(settings)
        except OSError as error:
            raise ComparisonError(f"{path} cannot be written to ({error.strerror}): choose another --output") from error
        return cls(path)

    def outcome(self, method: str, seed: int) -> Outcome | None:
        """What was saved of a method with a seed; None where it has not run.

        Raises:
            ComparisonError: a file that is damaged or foreign.
        """
        path = self._path(method, seed)
        if not path.exists():
            return None
        try:
            outcome: Outcome = TypeAdapter(Outcome).validate_json(path.read_bytes())
        except ValidationError as error:
            raise ComparisonError(f"{path} is damaged or foreign: delete it, so that it is computed again") from error
        return outcome

    def save(self, outcome: Outcome) -> None:
        """Writes a method's outcome with a seed. Raises SaveError where it cannot, such as on a full disk."""
        path = self._path(outcome.method, outcome.seed)
        with saving(path, "make room there, then start again: outcomes that are saved are not computed again"):
            remove_leftovers(path)
            write_text(path, json.dumps(asdict(outcome), indent=2, allow_nan=False) + "\n")

    def _path(self, method: str, seed: int) -> Path:
        return self.path / f"{method}-seed-{seed}.json"
