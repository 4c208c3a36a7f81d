"""What every way of combining posteriors begins with: checks, weights, and passes over θ in float64."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from dswag.core.parameters import Layout
from dswag.core.threads import default_workers, ordered_map
from dswag.posterior.gaussian import GaussianPosterior

ELEMENTS = 1 << 20
"""Numbers that a thread brings to float64 at a time, over all clients."""

OutT = TypeVar("OutT")

Weights = Sequence[float] | Tensor
"""One for each client, at least 0; only their ratios matter."""


def checked(posteriors: Sequence[GaussianPosterior]) -> tuple[GaussianPosterior, ...]:
    """The posteriors, if they can be combined, with their parameters in the order of the first.

    Raises:
        ValueError: there are none, or they differ in parameters, dtype, device, temperature or link.
    """
    if not len(posteriors):
        raise ValueError("there are no posteriors to combine: give one for each client")
    first, layout = posteriors[0], layout_of(posteriors)
    for client, posterior in enumerate(posteriors):
        if posterior.mean.shape != first.mean.shape:
            raise ValueError(
                "all posteriors must be over the same parameters, "
                f"got d = {len(posterior.mean)} for posterior {client} and {len(first.mean)}"
            )
        if layout is not None and posterior.layout is not None and _by_name(posterior.layout) != _by_name(layout):
            own, others = _difference(posterior.layout, layout), _difference(layout, posterior.layout)
            raise ValueError(
                f"all posteriors must be over the same parameters, got {own} for posterior {client} and {others}"
            )
        for name in ("dtype", "device"):
            own, others = getattr(posterior.mean, name), getattr(first.mean, name)
            if own != others:
                raise ValueError(f"all posteriors must have one {name}, got {own} for posterior {client} and {others}")
        for name in ("temperature", "link"):
            own, others = getattr(posterior, name), getattr(first, name)
            if own != others:
                raise ValueError(
                    f"all posteriors must have one {name}, got {own} for posterior {client} and {others}: "
                    f"set it with dataclasses.replace(posterior, {name}=...)"
                )
    return tuple(posteriors if layout is None else (posterior.in_layout(layout) for posterior in posteriors))


def _by_name(layout: Layout) -> dict[str, tuple[int, ...]]:
    return dict(zip(layout.names, layout.shapes, strict=True))


def layout_of(posteriors: Sequence[GaussianPosterior]) -> Layout | None:
    """The parameters behind θ, if any of the posteriors knows them."""
    return next((posterior.layout for posterior in posteriors if posterior.layout is not None), None)


def normalized(weights: Weights | None, posteriors: Sequence[GaussianPosterior]) -> Float64[Tensor, "w"]:
    """The weights with a sum of 1; by the clients' numbers of snapshots where none are given.

    Raises:
        ValueError: not one for each client, negative, NaN or infinite, all zero, or a client whose count is not known.
    """
    if weights is None:
        unknown = [client for client, posterior in enumerate(posteriors) if posterior.count < 1]
        if unknown:
            raise ValueError(
                f"posteriors {unknown} do not say how many snapshots they were made of, which is what clients weigh: "
                "pass weights=..."
            )
        weights = [posterior.count for posterior in posteriors]
    values = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if values.shape != (len(posteriors),):
        raise ValueError(f"there must be one weight for each of {len(posteriors)} posteriors, got {list(values.shape)}")
    if not (torch.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError(f"weights must be finite, at least 0 and not all 0, got {values.tolist()}")
    values = values / values.max()
    return (values / values.sum()).to(posteriors[0].mean.device)


def over_parts(function: Callable[[slice], OutT], posteriors: Sequence[GaussianPosterior], rows: int) -> Iterator[OutT]:
    """What the function gives for every part of θ, in order, by the threads of a pool.

    `rows` rows of a part are about `ELEMENTS` numbers.
    """
    d, size = len(posteriors[0].mean), max(1, ELEMENTS // rows)
    slices = (slice(start, min(start + size, d)) for start in range(0, d, size))
    return ordered_map(lambda _, part: function(part), [None] * default_workers(), slices)


def sum_over_parts(function: Callable[[slice], Tensor], posteriors: Sequence[GaussianPosterior], rows: int) -> Tensor:
    """The sum of what the function gives, always added in the order of the parts."""
    outcomes = over_parts(function, posteriors, rows)
    total = next(outcomes)
    for outcome in outcomes:
        total += outcome
    return total


def means(posteriors: Sequence[GaussianPosterior], part: slice) -> Float64[Tensor, "w p"]:
    """The clients' means, of which differences can be taken."""
    return torch.stack([posterior.mean[part].double() for posterior in posteriors])


def variances(posteriors: Sequence[GaussianPosterior], part: slice) -> Float64[Tensor, "w p"]:
    """The clients' variances, with what their own scales make of them."""
    return torch.stack([posterior.factors("diagonal", part=part)[0].double() for posterior in posteriors])


def centered(
    values: Float64[Tensor, "w p"], weights: Float64[Tensor, "w"], around: int = 0
) -> tuple[Float64[Tensor, "p"], Float64[Tensor, "w p"]]:
    """The weighted mean and the differences to it; differences to the row `around` come before any sum."""
    steps = values - values[around]
    step = weights @ steps
    return values[around] + step, steps - step


def total_moments(
    posteriors: Sequence[GaussianPosterior], weights: Float64[Tensor, "w"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and mean of the variances [d] of the clients' mixture.

    By the laws of total expectation and variance, E[θ] = Σ w_c m_c and Var[θ] = Σ w_c v_c + Σ w_c (m_c - E[θ])².
    """
    mean, variance, within = (torch.empty_like(posteriors[0].mean) for _ in range(3))

    def fill(part: slice) -> None:
        center, offsets = centered(means(posteriors, part), weights)
        inner = weights @ variances(posteriors, part)
        mean[part], variance[part], within[part] = center, inner + weights @ offsets.square(), inner

    for _ in over_parts(fill, posteriors, 3 * len(posteriors)):
        pass
    return mean, variance, within


def _difference(layout: Layout, other: Layout) -> str:
    """The first parameter that the other does not have at its place."""
    named = list(zip(layout.names, layout.shapes, strict=True))
    others = [*zip(other.names, other.shapes, strict=True), *[None] * len(named)]
    name, shape = next((mine for mine, theirs in zip(named, others, strict=False) if mine != theirs), named[-1])
    return f"{name} {list(shape)}"
