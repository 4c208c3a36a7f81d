"""The mixture of the clients' posteriors, which may have several modes."""

import math
from bisect import bisect
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core import normals
from dswag.core.links import Learned
from dswag.core.parameters import Layout
from dswag.posterior.combining.clients import Weights, checked, layout_of, normalized, total_moments
from dswag.posterior.draws import Draws, Kind
from dswag.posterior.gaussian import GaussianPosterior


class MixturePosterior:
    """Σ w_c N(m_c, C_c), of the clients' posteriors.

    `dswag.predict` and `predictive` take it like any posterior; for models with BatchNorm layers each draw needs a
    round trip of its own with the clients.

    Args:
        components: the posteriors, over the same parameters.
        weights: w_c up to a factor; the clients' snapshot counts if None.

    Raises:
        ValueError: no posteriors, or some that `clients.checked` refuses; impossible weights.
    """

    def __init__(self, components: Sequence[GaussianPosterior], weights: Weights | None = None) -> None:
        self.components = checked(components)
        self.weights = normalized(weights, self.components)

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """Σ w_c m_c."""
        return self._moments[0]

    @property
    def variance(self) -> Float[Tensor, "d"]:
        """Σ w_c v_c + Σ w_c (m_c - mean)², the variance of what `kind="diagonal"` draws."""
        return self._moments[1]

    @property
    def layout(self) -> Layout | None:
        """The parameters behind θ, where known."""
        return layout_of(self.components)

    @property
    def temperature(self) -> float:
        """What predictions are tempered with: that of every component."""
        return self.components[0].temperature

    @property
    def link(self) -> Learned | None:
        """What the loss of training says about the model's outputs: that of every component."""
        return self.components[0].link

    def sample(
        self, seed: int, n: int = 1, *, first: int = 0, kind: Kind = "swag", scale: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """Draws number `first` to `first + n - 1` of the seed, a row each: a component by its weight, then its draw.

        A draw is a function of the mixture, seed, number, kind and scale, however many are asked for at once.

        Raises:
            ValueError: no draws, or such as a component cannot make.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        draws = self.components[0].mean.new_empty(n, len(self.components[0].mean))
        for row, number in enumerate(range(first, first + n)):
            draws[row] = self.components[self.component(seed, number)].sample(
                seed, first=number, kind=kind, scale=scale
            )[0]
        return draws

    def component(self, seed: int, number: int) -> int:
        """The component of one draw."""
        (integer,) = normals.integers(normals.key_of(seed, number, 0), 0, 1).tolist()  # 0: no component draws from here
        shares = list(accumulate(self.weights.tolist()))
        return bisect(shares[:-1], (integer >> 11) * 2.0**-53 * shares[-1])

    def log_prob(
        self, theta: Float[Tensor, "*n d"], kind: Kind = "swag", scale: float = 1.0, *, floor: float = 0.0
    ) -> Float64[Tensor, "*n"]:
        """The log density of one θ [d], or of each row of [n, d]: ln Σ w_c p_c(θ), in nats, float64.

        Raises:
            ValueError: a θ of another shape, or components without a density (`GaussianPosterior.log_prob`).
        """
        likely = [(w, c) for w, c in zip(self.weights.tolist(), self.components, strict=True) if w > 0]
        terms = [math.log(w) + c.log_prob(theta, kind, scale, floor=floor) for w, c in likely]
        return torch.stack(terms).logsumexp(0)

    def draws(self, seed: int, count: int, *, kind: Kind = "swag", scale: float = 1.0) -> Draws:
        """The first `count` draws of the seed, as `predict` describes them."""
        return self.components[0].draws(seed, count, kind=kind, scale=scale)

    def tensors(self) -> dict[str, Tensor]:
        """All components' tensors, as "0.mean", and the weights."""
        named = {
            f"{number}.{name}": tensor
            for number, component in enumerate(self.components)
            for name, tensor in component.tensors().items()
        }
        return {**named, "weights": self.weights}

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        return total_moments(self.components, self.weights)
