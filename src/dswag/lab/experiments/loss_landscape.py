"""A run's landscape: the training loss around its posterior's mean, on few examples and a coarse grid."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from dswag.algorithms.prediction import ensemble
from dswag.data.examples import Examples
from dswag.evaluation import metrics
from dswag.evaluation.loss_landscape import surroundings
from dswag.evaluation.principal import principal, total_variance
from dswag.lab.experiments.recipe import Experiment, Recipe
from dswag.lab.experiments.scoring import PHASE_1
from dswag.posterior.gaussian import GaussianPosterior
from dswag.runs.schema import Landscape

AT = tuple(map(float, range(-4, 5)))
"""Where it is measured, in standard deviations from the mean."""
EIGENVECTORS = 4
EXAMPLES = 1000
MOST_WEIGHTS = 1_000_000
"""Of models whose landscape is measured unasked: on one core the MLP takes 0.6 s, VGG16 a quarter of an hour."""
SNAPSHOTS = "snapshots"


def points(recipe: Recipe, posterior: GaussianPosterior) -> int:
    """At how many points `survey` measures the loss; 0 where the run has nothing to measure, or is not to."""
    lines = _directions(posterior) if _num_examples(recipe, posterior) and not posterior.is_point else 0
    return lines * len(AT) + (len(AT) ** 2 if lines >= 2 else 0)


def survey(
    experiment: Experiment,
    posterior: GaussianPosterior,
    theta: Float[Tensor, "d"],
    advance: Callable[[], None] = lambda: None,
) -> Landscape:
    """The landscape, with the places of θ_T and of the snapshots whose deviations are the posterior's columns.

    BatchNorm statistics are refreshed at each point, on about as many examples as the loss is measured on.

    Args:
        experiment: whose training examples, and whose clients.
        posterior: with a direction to look in.
        theta: θ_T, the phase-1 model.
        advance: called after each point.
    """
    recipe, directions = experiment.recipe, _directions(posterior)
    examples = experiment.dataset.train[: _num_examples(recipe, posterior)]
    for_statistics = recipe.predict.batch_norm_examples or max(2, -(-len(examples) // recipe.clients))
    measured = measured_on(experiment, examples, batch_norm_examples=for_statistics)

    def loss(theta: Float[Tensor, "d"]) -> float:
        _, nll = measured(theta)
        advance()
        return nll

    v, factor = posterior.factors("swag")
    leading = principal(v, factor, directions, tolerance=1e-4)
    offsets = {PHASE_1: (theta - posterior.mean)[None]}
    if recipe.posterior.columns == "last":  # the columns are then differences to the mean
        offsets[SNAPSHOTS] = posterior.deviations
    return Landscape(
        num_examples=len(examples),
        surroundings=surroundings(
            posterior.mean,
            leading,
            AT,
            {"train": loss},
            total_variance=total_variance(v, factor),
            planes=min(1, directions // 2),
        ),
        places={name: tuple(map(tuple, leading.coordinates(offset).tolist())) for name, offset in offsets.items()},
    )


def measured_on(
    experiment: Experiment, examples: Examples, *, batch_norm_examples: int | None = None
) -> Callable[[Float[Tensor, "d"]], tuple[float, float]]:
    """Accuracy and NLL of some weights, BatchNorm statistics refreshed where the model has them.

    Each client gives at most `batch_norm_examples` for that, or as many as the recipe says.
    """

    targets = examples.targets.cpu()

    def measured(theta: Float[Tensor, "d"]) -> tuple[float, float]:
        probabilities = ensemble(
            experiment.model,
            theta[None],
            examples.inputs,
            engine=experiment.engine,
            batch_norm_examples=batch_norm_examples or experiment.recipe.predict.batch_norm_examples,
            precision=experiment.recipe.local.precision,
        ).probabilities.cpu()
        return metrics.accuracy(probabilities, targets), metrics.nll(probabilities, targets)

    return measured


def _num_examples(recipe: Recipe, posterior: GaussianPosterior) -> int:
    if recipe.report.landscape_examples is not None:
        return recipe.report.landscape_examples
    return EXAMPLES if len(posterior.mean) <= MOST_WEIGHTS else 0


def _directions(posterior: GaussianPosterior) -> int:
    """How many eigenvectors: k centered columns have a rank of at most k - 1, and a still weight has no variance."""
    varying = int((posterior.variance > 0).sum())
    return max(0, min(EIGENVECTORS, len(posterior.deviations) - 1, varying))
