"""The Laplace approximation over the last layer (MacKay 1992; Daxberger et al. 2021)."""

import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import combinations_with_replacement
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from dswag.client import batch_norm
from dswag.core.parameters import Layout
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import federated
from dswag.posterior.gaussian import GaussianPosterior


def last_layer(model: nn.Module) -> str:
    """The name of the linear layer that gives the logits.

    Raises:
        ValueError: the last layer with weights is none, or is not trained.
    """
    *_, (name, layer) = [(n, m) for n, m in model.named_modules() if list(m.parameters(recurse=False))]
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise ValueError(f"a Laplace approximation of the last layer needs a linear one with bias, got {layer}")
    return str(name)


def curvature(model: nn.Module, name: str, batches: Iterable[tuple[Any, Tensor]]) -> Float64[Tensor, "m m"]:
    """The Hessian of the summed cross-entropy in weights [c, h] and bias [c] of the layer that gives the logits.

    With φ the layer's input and a 1 after it, and p the probabilities: Σ_n (diag(p) - p pᵀ) ⊗ φ φᵀ, exact for a last
    layer, where it is the generalised Gauss-Newton matrix too. Clients' matrices add up.
    """
    layer = model.get_submodule(name)
    features: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: features.append(arguments[0].double()))
    total = torch.zeros((), dtype=torch.float64)
    try:
        with torch.inference_mode():
            for inputs, _ in batches:
                probabilities = model(inputs).double().softmax(1)
                total = total + _of_batch(features.pop(), probabilities)
    finally:
        hook.remove()
    classes, width = total.shape[0], total.shape[1] - 1
    weights = total[:, :width, :, :width].reshape(classes * width, classes * width)
    mixed = total[:, :width, :, width].reshape(classes * width, classes)
    return torch.cat([torch.cat([weights, mixed], 1), torch.cat([mixed.T, total[:, width, :, width]], 1)])


def _of_batch(features: Float64[Tensor, "b h"], probabilities: Float64[Tensor, "b c"]) -> Float64[Tensor, "c k c k"]:
    """Blocks of Σ (diag(p) - p pᵀ) ⊗ φ φᵀ for each pair of classes."""
    phi = torch.cat([features, features.new_ones(len(features), 1)], 1)
    classes, width = probabilities.shape[1], phi.shape[1]
    blocks = phi.new_empty(classes, width, classes, width)
    for i, j in combinations_with_replacement(range(classes), 2):
        weight = -probabilities[:, i] * probabilities[:, j] + (probabilities[:, i] if i == j else 0)
        blocks[i, :, j] = blocks[j, :, i] = (phi * weight[:, None]).T @ phi
    return blocks


def gaussian(mean: Float[Tensor, "m"], hessian: Float64[Tensor, "m m"], layout: Layout) -> GaussianPosterior:
    """N(mean, (hessian + τ I)⁻¹), with the prior N(0, 1/τ) that has the largest evidence.

    All of the covariance is in the columns: its draws are those of kind "low_rank". With hessian = V diag(λ) Vᵀ it is
    FᵀF with F = diag(λ + τ)^-½ Vᵀ, and the columns are √(k - 1) F.
    """
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    eigenvalues.clamp_min_(0)
    tau = prior_precision(mean.double(), eigenvalues)
    factor = vectors.T / (eigenvalues + tau).sqrt()[:, None]
    return GaussianPosterior(
        mean=mean,
        variance=factor.square().sum(0).to(mean.dtype),
        deviations=(math.sqrt(len(mean) - 1) * factor).to(mean.dtype),
        count=1,
        layout=layout,
    )


def prior_precision(mean: Float64[Tensor, "m"], eigenvalues: Float64[Tensor, "m"]) -> float:
    """The τ with the largest evidence, up to constants ½ (m ln τ - Σ ln(λ + τ) - τ |mean|²) (MacKay 1992, Section 4).

    Where its derivative is 0, τ |mean|² is the number of well-determined parameters Σ λ / (λ + τ): found by bisection,
    for the difference of the two grows with τ.
    """
    square = float(mean.square().sum())
    low, high = 0.0, len(mean) / square
    for _ in range(100):
        tau = (low + high) / 2
        if tau * square < float((eigenvalues / (eigenvalues + tau)).sum()):
            low = tau
        else:
            high = tau
    return (low + high) / 2


def run(trial: Trial) -> Predictor:
    """Draws from the Gaussian around the weights that the whole budget leads to."""
    model = deepcopy(trial.model)
    trial.layout.write(trial.shared(federated), model)
    batch_norm.update(model, _training_batches(trial))
    model.eval()
    name = last_layer(model)
    model.requires_grad_(False).get_submodule(name).requires_grad_(True)
    layout = Layout.of(model)
    hessian = curvature(model, name, _training_batches(trial))
    return trial.from_posterior(gaussian(layout.flatten(model), hessian, layout), "low_rank", model=model)


def _training_batches(trial: Trial) -> Iterator[tuple[Any, Tensor]]:
    for data in trial.problem.training_examples:
        yield from data.batches(1024)


LAPLACE = Method("laplace", "Laplace approximation of the last layer (Daxberger et al. 2021)", run)
