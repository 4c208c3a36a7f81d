"""Draws from a Gaussian with a diagonal and a low-rank part, the same for any number of threads."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.randomness import generator_for
from dswag.threads import computing_with, default_workers, ordered_map

BLOCK = 1 << 17
"""Elements of θ drawn from one generator: part of what a draw is a function of, so never changed."""

CHUNK = 1 << 13
"""Elements whose K columns stay in the processor's cache while several draws use them."""

Parts = Callable[[slice], tuple[Float[Tensor, "p"] | None, Float[Tensor, "k p"] | None]]
"""Standard deviations and columns of a part of θ; None for a part of the covariance that is not drawn from."""


def draw(
    mean: Float[Tensor, "d"], parts: Parts, k: int, *, weight: float, seed: int, first: int, n: int
) -> Float[Tensor, "n d"]:
    """Draws `first` to `first + n - 1` of the seed, mean + std z₁ + `weight` columnsᵀ z₂, one z₂ [k] for all of θ.

    Each draw is a function of its number and the seed, bit for bit on one type of machine, also of how many others are
    drawn with it: z₁ comes from one generator for each block, and a chunk's columns are applied draw by draw.
    """
    draws = mean.new_empty(n, len(mean))
    z2 = mean.new_empty(n, k)
    has_diagonal = parts(slice(0, 0))[0] is not None
    for row in range(n):
        _fill_normal(z2[row], seed, first + row)

    def fill(_: None, block: int) -> None:
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(mean))
        for row in range(n):
            if has_diagonal:
                _fill_normal(draws[row, start:stop], seed, first + row, block)
        for begin in range(start, stop, CHUNK):
            part = slice(begin, min(begin + CHUNK, stop))
            _finish(draws[:, part], mean[part], *parts(part), z2, weight)

    blocks = range(math.ceil(len(mean) / BLOCK))
    if len(blocks) == 1:  # not worth a pool
        with computing_with(1):
            fill(None, 0)
    else:
        for _ in ordered_map(fill, [None] * min(default_workers(), len(blocks)), blocks):
            pass
    return draws


def _finish(out: Tensor, mean: Tensor, std: Tensor | None, columns: Tensor | None, z2: Tensor, weight: float) -> None:
    """Turns rows of z₁ into rows of θ, in place, for one part of θ."""
    for row, values in enumerate(out):
        if std is None:
            values.copy_(mean)
        else:
            values.mul_(std).add_(mean)
        if columns is not None:
            torch.addmv(values, columns.T, z2[row], alpha=weight, out=values)


def _fill_normal(out: Tensor, *path: int) -> None:
    """Fills a vector with standard normal values, a function of the path alone: of the CPU's generator, in float32."""
    if out.dtype == torch.float32 and out.device.type == "cpu":
        out.normal_(generator=generator_for(*path))
    else:
        out.copy_(torch.randn(len(out), generator=generator_for(*path), dtype=torch.float32))
