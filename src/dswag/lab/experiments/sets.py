"""Conformal sets of a run: which classes belong to the set of a prediction, and how well sets cover the test set."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dswag.algorithms.conformal import Conformal, conformal
from dswag.core.conformal_scores import Scoring, covered
from dswag.lab.experiments.recipe import Experiment
from dswag.posterior.gaussian import GaussianPosterior
from dswag.runs.schema import ConformalSets

ALPHA = 0.1
RESOLUTION = 2.0**-10


def conformal_sets(
    experiment: Experiment,
    posterior: GaussianPosterior,
    probabilities: Float[Tensor, "n c"],
    parts: Sequence[Int64[Tensor, "_"]],
) -> ConformalSets | None:
    """Sets from what the clients held out, tried on the test set; None where nothing was held out.

    Args:
        experiment: whose clients count their scores.
        posterior: what is predicted with.
        probabilities: its predictions for the test set.
        parts: the rows of the test set that each client has.
    """
    recipe, dataset = experiment.recipe, experiment.dataset
    if not recipe.calibration.holdout:
        return None
    found = conformal(experiment.engine, posterior, recipe, resolution=RESOLUTION)
    counts = found.total()
    bins = counts.nonzero().flatten().tolist()
    sets = _nonempty(found, probabilities, ALPHA)
    inside, targets = covered(sets, dataset.test.targets), dataset.test.targets
    return ConformalSets(
        alpha=ALPHA,
        resolution=RESOLUTION,
        counts=tuple((bin, int(counts[bin])) for bin in bins),
        coverage=_share(inside) or 0.0,
        sizes=tuple(sets.sum(1).bincount(minlength=sets.shape[1] + 1).tolist()),
        classes={name: _share(inside[targets == number]) for number, name in enumerate(dataset.class_names)},
        clients=tuple(_share(inside[part]) for part in parts),
    )


def sets_of(
    record: ConformalSets, probabilities: Float[Tensor, "n c"], alpha: float | None = None
) -> Bool[Tensor, "n c"]:
    """The set of each prediction, at the alpha of the run or another one."""
    counts = torch.zeros(1 + max((bin for bin, _ in record.counts), default=0), dtype=torch.int64)
    for bin, count in record.counts:
        counts[bin] = count
    found = Conformal(Scoring(resolution=record.resolution), {0: counts})
    return _nonempty(found, probabilities, record.alpha if alpha is None else alpha)


def _nonempty(found: Conformal, probabilities: Float[Tensor, "n c"], alpha: float) -> Bool[Tensor, "n c"]:
    """With the most probable class in every set, which can only make it cover more often."""
    probabilities = probabilities.cpu()
    return found.sets(probabilities, alpha).scatter_(1, probabilities.argmax(1, keepdim=True), True)


def _share(inside: Bool[Tensor, "n"]) -> float | None:
    return float(inside.double().mean()) if len(inside) else None
