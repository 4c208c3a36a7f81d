"""How good the methods are that a run compares, on its test set."""

import base64
import io
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from dswag.algorithms.prediction import Predictive, ensemble, predictive
from dswag.core.provenance import provenance
from dswag.core.randomness import derive_seed
from dswag.data.applied import applied
from dswag.data.datasets import ImageDataset
from dswag.evaluation.bootstrap import Interval, ReliabilityBand, mean_interval, reliability_band
from dswag.evaluation.by_client import ClientScores, by_client
from dswag.evaluation.inspection import Inspection, Telling, inspect
from dswag.evaluation.metrics import Scores, nll_of_each, score
from dswag.evaluation.reliability import Reliability, reliability
from dswag.evaluation.uncertainty import uncertainty
from dswag.lab.experiments.foreign import at_hand
from dswag.lab.experiments.recipe import Experiment, Recipe
from dswag.lab.experiments.sets import conformal_sets
from dswag.posterior.draws import Kind
from dswag.posterior.gaussian import GaussianPosterior
from dswag.runs.schema import ConformalSets, Examined, Metrics

PHASE_1 = "phase-1 model"
FEDAVG = "FedAvg, same budget"
ENSEMBLE = "clients' ensemble"
POSTERIOR_METHODS: dict[Kind | Literal["mean"], str] = {
    "mean": "mean model",
    "swag": "DSWAG",
    "diagonal": "DSWAG diagonal",
    "low_rank": "DSWAG low rank",
}
"""What predictions from a posterior are called, by the `kind` that `predictive` takes."""
RESAMPLES = 300
"""Of the test examples, for the bands around reliability curves."""
FOREIGN_INPUTS = 1000
"""That are predicted beside the test inputs."""
SHOWN = 10
"""Inputs of each kind whose pictures are kept."""
DEFAULT_KINDS: tuple[Kind | Literal["mean"], ...] = ("mean", "swag", "diagonal")


@dataclass(frozen=True)
class Scored:
    """One method was tried on the test set."""

    method: str
    scores: Scores
    reliability: Reliability
    nll_difference: Interval | None = None
    """NLL less that of the baseline on the same examples, with a 95 % interval over them; None for the baseline."""
    band: ReliabilityBand | None = None
    """Of DSWAG and the baseline."""
    inspection: Inspection | None = None
    """Of DSWAG alone."""
    examined: Examined | None = None
    """Of DSWAG alone."""
    clients: tuple[ClientScores, ...] = ()
    """Of DSWAG and the baseline: of each client's test examples, in its mix of the classes."""
    sets: ConformalSets | None = None
    """Of DSWAG alone, where examples were held out."""


def score_methods(
    experiment: Experiment,
    theta: Float[Tensor, "d"],
    posterior: GaussianPosterior,
    snapshots: Float[Tensor, "s d"] | None = None,
    *,
    continued: Float[Tensor, "d"] | None = None,
    kinds: Sequence[Kind | Literal["mean"]] = DEFAULT_KINDS,
) -> Iterator[Scored]:
    """The scores of one method after the other on the test set: phase 1, the posterior's kinds, the clients' ensemble.

    Args:
        experiment: whose test set, and whose clients refresh BatchNorm statistics.
        theta: θ_T, the phase-1 model.
        posterior: what phase 3 made of the snapshots.
        snapshots: of all explorers, for their ensemble; it is left out if None.
        continued: θ after as many more epochs of phase 1 as phase 2 has. It is the baseline, or θ_T where it is None.
        kinds: what to predict with from the posterior.
    """
    recipe, model, test = experiment.recipe, experiment.model, experiment.dataset.test
    options: dict[str, Any] = {
        "engine": experiment.engine,
        "batch_norm_examples": recipe.predict.batch_norm_examples,
        "precision": recipe.local.precision,
    }
    single = {PHASE_1: theta} if continued is None else {PHASE_1: theta, FEDAVG: continued}
    alone = {name: ensemble(model, each[None], test.inputs, **options).probabilities for name, each in single.items()}
    *_, baseline = alone
    parts = parts_of_the_test_set(experiment)
    nll_of_baseline = nll_of_each(alone[baseline].cpu(), test.targets)

    def scored(method: str, probabilities: Float[Tensor, "n c"]) -> Scored:
        probabilities, difference, band = probabilities.cpu(), None, None
        clients: tuple[ClientScores, ...] = ()
        if method != baseline:
            difference = mean_interval(nll_of_each(probabilities, test.targets) - nll_of_baseline, seed=recipe.seed)
        if method in (baseline, POSTERIOR_METHODS["swag"]):
            band = reliability_band(probabilities, test.targets, seed=recipe.seed, resamples=RESAMPLES)
            clients = by_client(probabilities, test.targets, parts)
        curve = reliability(probabilities, test.targets)
        return Scored(method, score(probabilities, test.targets), curve, difference, band, clients=clients)

    for name, probabilities in alone.items():
        yield scored(name, probabilities)
    what, foreign = at_hand(experiment.dataset, recipe.data.data_dir)
    foreign = foreign[:FOREIGN_INPUTS]
    for kind in kinds:
        prediction = predictive(
            model,
            posterior,
            torch.cat([test.inputs, foreign]) if kind == "swag" else test.inputs,
            samples=recipe.predict.samples,
            seed=prediction_seed(recipe),
            kind=kind,
            scale=recipe.predict.scale,
            **options,
        )
        of_test = _rows(prediction, slice(len(test)))
        outcome = scored(POSTERIOR_METHODS[kind], of_test.probabilities)
        if kind == "swag":
            others = _rows(prediction, slice(len(test), None))
            outcome = replace(
                outcome,
                inspection=_inspected(of_test.probabilities, experiment.dataset),
                examined=_examined(of_test, others, experiment.dataset, what, foreign),
                sets=conformal_sets(experiment, posterior, of_test.probabilities, parts),
            )
        yield outcome
    if snapshots is not None:
        yield scored(ENSEMBLE, ensemble(model, snapshots, test.inputs, **options).probabilities)


def parts_of_the_test_set(experiment: Experiment) -> list[Int64[Tensor, "_"]]:
    """The rows of the test set that each client has: as large a share of each class as of the training examples."""
    dataset = experiment.dataset
    return applied(
        experiment.parts, dataset.train.targets, dataset.test.targets, seed=derive_seed(experiment.recipe.seed, 6)
    )


def _rows(prediction: Predictive, rows: slice) -> Predictive:
    names = ("probabilities", "expected_entropy", "mutual_information", "variance")
    return replace(prediction, **{name: getattr(prediction, name)[rows] for name in names})


def _examined(
    of_test: Predictive,
    others: Predictive,
    dataset: ImageDataset,
    what: str,
    foreign: UInt8[Tensor, "m channels h w"],
) -> Examined:
    """The uncertainty of DSWAG's predictions for test and foreign inputs, with pictures of those that stand out."""
    names, targets = dataset.class_names, dataset.test.targets

    def telling(prediction: Predictive, i: int, target: str, image: UInt8[Tensor, "channels h w"]) -> Telling:
        confidence, label = prediction.probabilities[i].max(0)
        return Telling(i, target, names[int(label)], float(confidence), _data_uri(image))

    disagreed = of_test.mutual_information.sort(descending=True, stable=True).indices[:SHOWN].tolist()
    surest = others.probabilities.amax(1).sort(descending=True, stable=True).indices[:SHOWN].tolist()
    return Examined(
        uncertainty=uncertainty(of_test, targets, others),
        foreign=what,
        disagreed=tuple(telling(of_test, i, names[int(targets[i])], dataset.test.inputs[i]) for i in disagreed),
        surest_foreign=tuple(telling(others, i, "", foreign[i]) for i in surest),
    )


def _inspected(probabilities: Float[Tensor, "n c"], dataset: ImageDataset) -> Inspection:
    """The inspection of predictions of the test set, with pictures."""
    probabilities = probabilities.cpu()

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
        baseline=next(outcome.method for outcome in scored if outcome.nll_difference is None),
        bands={outcome.method: outcome.band for outcome in scored if outcome.band is not None},
        uncertainty=next((outcome.examined for outcome in scored if outcome.examined is not None), None),
        clients={outcome.method: outcome.clients for outcome in scored if outcome.clients},
        sets=next((outcome.sets for outcome in scored if outcome.sets is not None), None),
        samples=recipe.predict.samples,
        scale=recipe.predict.scale,
        seconds=seconds,
        environment=environment(),
    )


def environment() -> dict[str, str]:
    """Where something was computed, and with what."""
    return {
        **provenance(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": str(torch.get_num_threads()),
    }
