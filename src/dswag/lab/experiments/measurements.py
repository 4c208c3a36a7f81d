"""What is measured on a trained run for each figure and table; plain data, so that it goes into JSON as it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dswag.core.randomness import derive_seed, generator_for
from dswag.data import datasets
from dswag.data.examples import Examples
from dswag.evaluation import loss_landscape, metrics
from dswag.evaluation.bootstrap import mean_interval, reliability_band
from dswag.evaluation.loss_landscape import surroundings as around
from dswag.evaluation.out_of_distribution import detect
from dswag.evaluation.principal import principal as leading
from dswag.evaluation.principal import total_variance
from dswag.evaluation.shift import CORRUPTIONS, STRENGTHS, corrupt
from dswag.evaluation.temperature import calibrated_nll
from dswag.lab.baselines import METHODS, Method
from dswag.lab.baselines.distributed_swag import posterior as posterior_of
from dswag.lab.baselines.method import Predictor, Trial, complete
from dswag.lab.baselines.phases import phase_1
from dswag.lab.experiments.loss_landscape import measured_on
from dswag.lab.experiments.trained import Synchronized, Trained

PHASE_1 = Method("phase-1", "θ_T, where phase 1 ends", lambda trial: trial.from_weights(trial.shared(phase_1)[None]))
DIAGONAL = Method(
    "dswag-diagonal",
    "Distributed SWAG with the diagonal covariance",
    lambda trial: trial.from_posterior(posterior_of(trial), "diagonal", scale=trial.config.predict.scale),
)


def _matched_noise(trial: Trial) -> Predictor:
    posterior = posterior_of(trial)
    share = total_variance(*posterior.factors("swag")) / len(posterior.mean)
    noise = replace(
        posterior,
        variance=torch.full_like(posterior.mean, share),
        deviations=posterior.deviations[:0],
        variance_within=None,
        deviations_within=None,
    )
    return trial.from_posterior(noise, "diagonal", scale=trial.config.predict.scale)


MATCHED_NOISE = Method(
    "noise-matched", "equal noise on the mean weights, with the total variance of Distributed SWAG", _matched_noise
)

OWN: Mapping[str, Method] = MappingProxyType(
    {**METHODS, **{method.name: method for method in (PHASE_1, DIAGONAL, MATCHED_NOISE)}}
)
"""Every method that a plan may name."""


def course(trained: Synchronized) -> dict[str, Any]:
    """Phase 1 round by round (Figure 5, left)."""
    recipe = trained.experiment.recipe
    largest = max(map(len, trained.experiment.parts))
    return {
        "rounds": [asdict(outcome) for outcome in trained.rounds.outcomes],
        "steps_per_round": -(-largest // recipe.local.batch_size) * recipe.train.local_epochs,
    }


def calibration(trained: Trained, *, methods: Sequence[str], resamples: int = 300) -> dict[str, Any]:
    """Reliability curves of 20 bins of equal mass with bootstrap bands, and scores (Figure 5, right)."""
    test, seed = trained.experiment.dataset.test, trained.experiment.recipe.seed
    found = {}
    for name in methods:
        predictor, _ = complete(OWN[name], trained.problem)
        probabilities = predictor(test.inputs).probabilities.cpu()
        band = reliability_band(probabilities, test.targets, seed=seed, resamples=resamples)
        found[name] = {**asdict(metrics.score(probabilities, test.targets)), "band": asdict(band)}
    return found


def distances(
    trained: Trained, *, at: Sequence[float], eigenvectors: int = 2, signs: int = 2, draws: int = 2
) -> dict[str, Any]:
    """Accuracy and NLL against the distance from the mean, in standard deviations (Figure 6).

    The steps are: the standard deviation on every element, as the caption says; the same with random signs; what
    separates a draw from the mean, a random direction of the same expected length under the covariance; and the
    leading eigenvectors at a length of one standard deviation. Of random ones the mean over several is given.
    """
    posterior, seed = posterior_of(Trial(trained.problem)), trained.experiment.recipe.seed
    count = min(eigenvectors, len(posterior.deviations) - 1)
    principal = leading(*posterior.factors("swag"), count, tolerance=1e-4) if count else None
    std = posterior.std
    steps = {
        "every element": [std],
        "random signs": [loss_landscape.random_signs(std, generator_for(seed, 6, i)) for i in range(signs)],
        "draws": list(posterior.sample(derive_seed(seed, 6), draws) - posterior.mean),
        **{f"eigenvector {i + 1}": [principal.steps[i]] for i in range(count) if principal is not None},
    }
    test = trained.experiment.dataset.test
    lines = {
        name: torch.stack(
            [
                torch.tensor(loss_landscape.along(posterior.mean, step, at, measured_on(trained.experiment, test)))
                for step in directions
            ]
        ).mean(0)
        for name, directions in steps.items()
    }
    return {
        "at": list(at),
        "directions": {n: {"accuracy": v[:, 0].tolist(), "nll": v[:, 1].tolist()} for n, v in lines.items()},
        "lengths": {name: float(torch.stack(each).norm(dim=1).mean()) for name, each in steps.items()},
        "mean_norm": float(posterior.mean.norm()),
    }


def surroundings(
    trained: Trained, *, span: float = 4.0, points: int = 17, examples: int = 5000, eigenvectors: int = 4
) -> dict[str, Any]:
    """Loss along the leading eigenvectors of the covariance, and loss and density on planes of two of them (Figure 4).

    Steps are standard deviations along each; training loss is that of the first so many training examples.
    """
    dataset, posterior = trained.experiment.dataset, posterior_of(Trial(trained.problem))
    v, factor = posterior.factors("swag")

    def nll(examples: Examples) -> Callable[[Tensor], float]:
        measured = measured_on(trained.experiment, examples)
        return lambda theta: measured(theta)[1]

    found = around(
        posterior.mean,
        leading(v, factor, eigenvectors, tolerance=1e-4),
        torch.linspace(-span, span, points).tolist(),
        {"train": nll(dataset.train[:examples]), "test": nll(dataset.test)},
        total_variance=total_variance(v, factor),
        planes=eigenvectors // 2,
    )
    return asdict(found)


def methods(
    trained: Trained,
    *,
    methods: Sequence[str],
    reference: str = "phase-1",
    rival: str | None = None,
    outside: str | None = None,
    outside_examples: int | None = None,
    shifted_examples: int = 0,
    resamples: int = 0,
) -> dict[str, Any]:
    """Scores of methods: as they are, calibrated, on inputs from outside and corrupted; and what they cost.

    Args:
        trained: what they start from.
        methods: by name.
        reference: the method that paired differences in NLL are taken to, where it is one of those.
        rival: a second one, which predicts for that even where it is none of those.
        outside: test set of inputs that are unlike the training data; none if None.
        outside_examples: how many of the first of them; all if None.
        shifted_examples: how many of the first test examples are corrupted.
        resamples: of the bands around reliability curves; without them there are no curves.
    """
    dataset, recipe = trained.experiment.dataset, trained.experiment.recipe
    test = dataset.test
    others = None if outside is None else datasets.load_test(outside, recipe.data.data_dir).inputs[:outside_examples]
    found: dict[str, Any] = {}
    losses: dict[str, Tensor] = {}
    for name in methods:
        predictor, cost = complete(OWN[name], trained.problem)
        predicted = predictor(test.inputs)
        probabilities = predicted.probabilities.cpu()
        losses[name] = metrics.nll_of_each(probabilities, test.targets)
        found[name] = {
            **asdict(metrics.score(probabilities, test.targets)),
            "calibrated_nll": calibrated_nll(probabilities, test.targets, seed=recipe.seed),
            "cost": asdict(cost),
        }
        if resamples:
            band = reliability_band(probabilities, test.targets, seed=recipe.seed, resamples=resamples)
            found[name]["band"] = asdict(band)
        if others is not None:
            detected = detect(predicted, predictor(others))
            found[name]["outside"] = {score: asdict(detection) for score, detection in detected.items()}
        if shifted_examples:
            found[name]["shift"] = _shifted(predictor, test[:shifted_examples], recipe.seed)
    if rival is not None and rival not in losses:
        predictor, _ = complete(OWN[rival], trained.problem)
        losses[rival] = metrics.nll_of_each(predictor(test.inputs).probabilities.cpu(), test.targets)
    for key, other in (("nll_difference", reference), ("nll_difference_to_rival", rival)):
        for name in methods:
            if other in losses and name != other:
                difference = mean_interval(losses[name] - losses[other], seed=recipe.seed)
                found[name][key] = {"to": other, **asdict(difference)}
    return found


MEASURES: Mapping[str, Callable[..., dict[str, Any]]] = MappingProxyType(
    {
        "course": course,
        "calibration": calibration,
        "distances": distances,
        "surroundings": surroundings,
        "methods": methods,
    }
)
"""What a plan may measure, by name."""

OF_PHASE_1 = frozenset({"course"})
"""Those that need no phase 2."""


def _shifted(predictor: Predictor, examples: Examples, seed: int) -> dict[str, list[dict[str, float]]]:
    """Accuracy, NLL and calibration error at each strength of each corruption."""
    found: dict[str, list[dict[str, float]]] = {}
    for corruption in CORRUPTIONS:
        for strength in STRENGTHS:
            inputs = corrupt(examples.inputs, corruption, strength, seed=seed)
            scores = metrics.score(predictor(inputs).probabilities.cpu(), examples.targets)
            kept = {"accuracy": scores.accuracy, "nll": scores.nll, "ece_equal_mass": scores.ece_equal_mass}
            found.setdefault(corruption, []).append(kept)
    return found
