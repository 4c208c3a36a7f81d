"""How good the methods are that a run compares, on its test set."""

import base64
import io
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dswag.algorithms.prediction import Predictive, ensemble, predictive
from dswag.core.randomness import derive_seed
from dswag.data.datasets import ImageDataset
from dswag.evaluation.bootstrap import Interval, mean_interval
from dswag.evaluation.inspection import Inspection, Telling, inspect
from dswag.evaluation.metrics import Scores, nll_of_each, score
from dswag.evaluation.reliability import Reliability, reliability
from dswag.federation.contract import Kind
from dswag.lab.experiments.recipe import Experiment, Recipe
from dswag.posterior.gaussian import GaussianPosterior
from dswag.runs.schema import Metrics

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
    nll_difference: Interval | None = None
    """NLL less that of the phase-1 model on the same examples, with a 95 % interval over them; None for that model."""
    inspection: Inspection | None = None
    """Of DSWAG alone."""


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
    recipe, model, test = experiment.recipe, experiment.model, experiment.dataset.test
    options: dict[str, Any] = {
        "engine": experiment.engine,
        "batch_norm_examples": recipe.batch_norm_examples,
        "precision": recipe.precision,
    }
    inputs = test.inputs
    before = ensemble(model, theta[None], inputs, **options).probabilities.cpu()
    nll_before = nll_of_each(before, test.targets)

    def scored(method: str, prediction: Predictive) -> Scored:
        probabilities = prediction.probabilities.cpu()
        difference = mean_interval(nll_of_each(probabilities, test.targets) - nll_before, seed=recipe.seed)
        closer = _inspected(probabilities, experiment.dataset) if method == POSTERIOR_METHODS["swag"] else None
        return Scored(
            method, score(probabilities, test.targets), reliability(probabilities, test.targets), difference, closer
        )

    yield Scored(PHASE_1, score(before, test.targets), reliability(before, test.targets))
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


def _inspected(probabilities: Float[Tensor, "n c"], dataset: ImageDataset) -> Inspection:
    """The inspection of predictions of the test set, with pictures."""

    def pictured(example: Telling) -> Telling:
        return replace(example, picture=_data_uri(dataset.test.inputs[example.index]))

    found = inspect(probabilities, dataset.test.targets, dataset.class_names)
    return replace(
        found,
        most_uncertain=tuple(map(pictured, found.most_uncertain)),
        most_wrong=tuple(map(pictured, found.most_wrong)),
    )


def _data_uri(image: UInt8[Tensor, "c h w"]) -> str:
    """The image as a PNG inside a URI, in gray or in color."""
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    written = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(written, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def prediction_seed(recipe: Recipe) -> int:
    """The seed of the draws with which a run is evaluated; phases 1 and 2 have their own."""
    return derive_seed(recipe.seed, 3)


def metrics(scored: Sequence[Scored], recipe: Recipe, seconds: Mapping[str, float]) -> Metrics:
    """All outcomes together, with what they depend on and where they were computed."""
    return Metrics(
        scores={outcome.method: outcome.scores for outcome in scored},
        reliability={outcome.method: outcome.reliability for outcome in scored},
        inspection={outcome.method: outcome.inspection for outcome in scored if outcome.inspection is not None},
        nll_differences={
            outcome.method: outcome.nll_difference for outcome in scored if outcome.nll_difference is not None
        },
        samples=recipe.samples,
        scale=recipe.scale,
        seconds=seconds,
        environment=environment(),
    )


def environment() -> dict[str, str]:
    """Where something was computed, and with what."""
    return {
        "dswag": version("dswag"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": str(torch.get_num_threads()),
    }
