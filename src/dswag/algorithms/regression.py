"""Algorithm 2 for regressions: predictive mean and variance under a Gaussian likelihood."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.algorithms.prediction import Members, Posterior, check_finite, draws_of, outputs
from dswag.core.outputs import mean_and_noise
from dswag.federation.contract import Engine
from dswag.posterior.draws import Kind


@dataclass(frozen=True, eq=False)
class Regression:
    """The predictive mean and variance of each output, by the law of total variance."""

    mean: Float[Tensor, "n ..."]
    noise_variance: Float[Tensor, "n ..."]
    """Variance of the targets around the prediction of a draw, as a mean over the draws."""
    model_variance: Float[Tensor, "n ..."]
    """Variance of the draws' predictions (divided by S)."""

    @property
    def variance(self) -> Float[Tensor, "n ..."]:
        """The total variance: that of the noise plus that of the model."""
        return self.noise_variance + self.model_variance


def regression(
    model: nn.Module,
    posterior: Posterior,
    inputs: Tensor | Iterable[Any],
    *,
    noise: float | None = None,
    samples: int = 30,
    seed: int = 0,
    kind: Kind | Literal["mean"] = "swag",
    scale: float = 1.0,
    engine: Engine | None = None,
    batch_norm_examples: int | None = None,
    batch_size: int = 128,
    workers: int | None = None,
) -> Regression:
    """Algorithm 2 for a Gaussian likelihood: mean and variance of the mixture of the draws' predictions.

    Takes what `predictive` takes, and `noise`: the variance of the targets around the model's outputs. A model that
    predicts the noise itself returns (means, variances); then leave `noise` out.

    Raises:
        ValueError: no noise variance from either side, or one that is negative; otherwise as `predictive`.
        FloatingPointError: a draw whose outputs are not finite, named.
    """
    if noise is not None and not noise >= 0:
        raise ValueError(f"noise is a variance and must be at least 0, got {noise}")
    members = draws_of(
        model,
        posterior,
        samples=samples,
        seed=seed,
        kind=kind,
        scale=scale,
        engine=engine,
        batch_norm_examples=batch_norm_examples,
        workers=workers,
    )
    groups = outputs(model, members, inputs, batch_size, lambda output: mean_and_noise(output, noise))
    return Regression(*map(torch.cat, zip(*(_moments(outcomes, members) for outcomes in groups), strict=True)))


def _moments(outcomes: Iterable[list[tuple[Tensor, ...]]], members: Members) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, noise variance and model variance of some examples, over the draws."""
    count = 0
    mean = scatter = variance = torch.zeros((), dtype=torch.float64, device="cpu")
    for parts in outcomes:
        predicted, own_variance = map(torch.cat, zip(*parts, strict=True))
        for values in (predicted, own_variance):
            check_finite(values, count, members)
        count += 1
        step = predicted - mean
        mean = mean + step / count
        scatter = scatter + step * (predicted - mean)
        variance = variance + (own_variance - variance) / count
    return mean.float(), variance.float(), (scatter / count).float()
