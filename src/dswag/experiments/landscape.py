"""The loss around a run's posterior."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from dswag.data.examples import Examples
from dswag.evaluation import metrics
from dswag.experiments.recipe import Experiment
from dswag.prediction import ensemble


def measured_on(
    experiment: Experiment, examples: Examples, *, batch_norm_examples: int | None = None
) -> Callable[[Float[Tensor, "d"]], tuple[float, float]]:
    """Accuracy and NLL of some weights, BatchNorm statistics refreshed where the model has them.

    Each client gives at most `batch_norm_examples` for that, or as many as the recipe says.
    """

    def measured(theta: Float[Tensor, "d"]) -> tuple[float, float]:
        probabilities = ensemble(
            experiment.model,
            theta[None],
            examples.inputs,
            engine=experiment.engine,
            batch_norm_examples=batch_norm_examples or experiment.recipe.batch_norm_examples,
        ).probabilities.cpu()
        return metrics.accuracy(probabilities, examples.targets), metrics.nll(probabilities, examples.targets)

    return measured
