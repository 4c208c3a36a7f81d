"""Passes over several vectors as long as θ, part by part on the thread pool, with memory for a few parts."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core.threads import default_workers, ordered_map

ELEMENTS = 1 << 18
"""Numbers handled at a time: 50 rows of 5,000 elements fit the processor's cache, also in float64."""

Rows = Sequence[Float[Tensor, "d"]]
"""n vectors of one shape; a matrix [n, d] is one by its `unbind()`."""

OutT = TypeVar("OutT")


def over_parts(function: Callable[[Float[Tensor, "n p"], slice], OutT], rows: Rows) -> Iterator[OutT]:
    """What the function gives for a copy of each part of all rows and the place of that part in θ, in order."""
    d, size = len(rows[0]), max(1, ELEMENTS // len(rows))
    parts = (slice(start, min(start + size, d)) for start in range(0, d, size))
    workers = default_workers() if rows[0].device.type == "cpu" else 1

    def call(_: None, part: slice) -> OutT:
        return function(torch.stack([row[part] for row in rows]), part)

    return ordered_map(call, [None] * workers, parts)


def sorted_columns(part: Float[Tensor, "n p"]) -> Float[Tensor, "p n"]:
    """The elements of each column in ascending order, a row each, in float32 at least."""
    columns = part.T.contiguous().to(torch.promote_types(part.dtype, torch.float32))
    if columns.device.type != "cpu":
        return columns.sort(1).values
    return torch.from_numpy(np.sort(columns.numpy(), axis=1))  # an order of magnitude faster than torch.sort


def middle_mean(rows: Rows, cut: int) -> Float[Tensor, "d"]:
    """The mean of each coordinate's values without the `cut` lowest and the `cut` highest; summed in float64."""
    mean = torch.empty_like(rows[0])

    def fill(part: Tensor, place: slice) -> None:
        mean[place] = sorted_columns(part)[:, cut : len(rows) - cut].mean(1, dtype=torch.float64)

    for _ in over_parts(fill, rows):
        pass
    return mean


def weighted_sum(weights: Float64[Tensor, "n"], rows: Rows) -> Float[Tensor, "d"]:
    """The sum of the rows, each times its weight; summed in float64."""
    weights, outcome = weights.to(rows[0].device), torch.empty_like(rows[0])

    def fill(part: Tensor, place: slice) -> None:
        outcome[place] = weights @ part.double()

    for _ in over_parts(fill, rows):
        pass
    return outcome


def gram(rows: Rows, origin: Float[Tensor, "d"]) -> Float64[Tensor, "n n"]:
    """The inner products of the rows' differences to `origin`, on the CPU.

    Differences to a point near most of the rows, in float64, so that the others cost those no digits.
    """

    def inner(part: Tensor, place: slice) -> Tensor:
        steps = part.double().sub_(origin[place].double())
        return (steps @ steps.T).cpu()

    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device="cpu")
    for products in over_parts(inner, rows):  # always added in the order of the parts
        total += products
    return total


def squared_distances(inner: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """The squared distance of every pair of points, of which these are the inner products around any origin."""
    norms = inner.diagonal()
    squared = (norms[:, None] + norms - 2 * inner).clamp_min_(0)
    return squared.fill_diagonal_(0)
