"""How good the methods are that a run compares, on its test set."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.evaluation.calibration import Reliability, reliability
from dswag.evaluation.metrics import Scores, score
from dswag.experiments.recipe import Experiment, Recipe
from dswag.posterior import GaussianPosterior
from dswag.prediction import Predictive, ensemble, predictive
from dswag.randomness import derive_seed
from dswag.records import Metrics
from dswag.tasks import Kind

PHASE_1 = "phase-1 model"
ENSEMBLE = "clients' ensemble"
POSTERIOR_METHODS: dict[Kind | Literal["mean"], str] = {
    "mean": "mean model",
    "swag": "DSWAG",
    "diagonal": "DSWAG diagonal",
    "low_rank": "DSWAG low rank",
}
"""What predictions from a posterior are called, by the `kind` that `predictive` takes."""
DEFAULT_KINDS: tuple[Kind | Literal["mean"], ...] = ("mean", "swag", "diagonal")


@dataclass(frozen=True)
class Scored:
    """One method was tried on the test set."""

    method: str
    scores: Scores
    reliability: Reliability


def score_methods(
    experiment: Experiment,
    theta: Float[Tensor, "d"],
    posterior: GaussianPosterior,
    snapshots: Float[Tensor, "s d"] | None = None,
    *,
    kinds: Sequence[Kind | Literal["mean"]] = DEFAULT_KINDS,
) -> Iterator[Scored]:
    """The scores of one method after the other on the test set: phase 1, the posterior's kinds, the clients' ensemble.

    Args:
        experiment: whose test set, and whose clients refresh BatchNorm statistics.
        theta: θ_T, the phase-1 model.
        posterior: what phase 3 made of the snapshots.
        snapshots: of all explorers, for their ensemble; it is left out if None.
        kinds: what to predict with from the posterior.
    """
    recipe, model, inputs = experiment.recipe, experiment.model, experiment.dataset.test.inputs
    options: dict[str, Any] = {"engine": experiment.engine, "batch_norm_examples": recipe.batch_norm_examples}

    def scored(method: str, prediction: Predictive) -> Scored:
        probabilities, targets = prediction.probabilities.cpu(), experiment.dataset.test.targets
        return Scored(method, score(probabilities, targets), reliability(probabilities, targets))

    yield scored(PHASE_1, ensemble(model, theta[None], inputs, **options))
    for kind in kinds:
        prediction = predictive(
            model,
            posterior,
            inputs,
            samples=recipe.samples,
            seed=prediction_seed(recipe),
            kind=kind,
            scale=recipe.scale,
            **options,
        )
        yield scored(POSTERIOR_METHODS[kind], prediction)
    if snapshots is not None:
        yield scored(ENSEMBLE, ensemble(model, snapshots, inputs, **options))


def prediction_seed(recipe: Recipe) -> int:
    """The seed of the draws with which a run is evaluated; phases 1 and 2 have their own."""
    return derive_seed(recipe.seed, 3)


def metrics(scored: Sequence[Scored], recipe: Recipe, seconds: Mapping[str, float]) -> Metrics:
    """All outcomes together, with what they depend on and where they were computed."""
    return Metrics(
        scores={outcome.method: outcome.scores for outcome in scored},
        reliability={outcome.method: outcome.reliability for outcome in scored},
        samples=recipe.samples,
        scale=recipe.scale,
        seconds=seconds,
        environment={
            "dswag": version("dswag"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "threads": str(torch.get_num_threads()),
        },
    )
