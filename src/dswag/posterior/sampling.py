"""Draws from a Gaussian with a diagonal and a low-rank part, the same for any number of threads."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dswag.core.randomness import generator_for
from dswag.core.threads import default_workers, ordered_map

BLOCK = 1 << 17
"""Elements of θ drawn from one generator, and by one thread."""

CHUNK = 1 << 14
"""Elements whose draws and K columns stay in the processor's cache together."""

GROUP = 5
"""Draws whose low-rank parts are one matrix product."""

# A draw is a function of these numbers too, so they are never changed.

Parts = Callable[[slice], tuple[Float[Tensor, "p"] | None, Float[Tensor, "k p"] | None]]
"""Standard deviations and columns of a part of θ; None for a part of the covariance that is not drawn from."""


def draw(
    mean: Float[Tensor, "d"], parts: Parts, k: int, *, weight: float, seed: int, first: int, out: Float[Tensor, "n d"]
) -> None:
    """Fills `out` with draws `first` to `first + n - 1` of the seed: mean + std z₁ + `weight` columnsᵀ z₂.

    There is one z₂ [k] a draw for all of θ, and z₁ comes from one generator a draw and block. A draw is a function of
    its number and the seed, bit for bit on one type of machine, however many others are drawn with it: since a matrix
    product may round otherwise for another number of rows, each has GROUP, and those not asked for are zero.
    """
    d = len(mean)
    z2 = low_rank_normals(mean, k, seed, first, len(out)).mul_(weight)
    numbers = range(first, first + len(out))

    def fill(_: None, block: int) -> None:
        generators = [generator_for(seed, number, block) for number in numbers]
        buffer = mean.new_empty(GROUP, CHUNK)
        stop = min((block + 1) * BLOCK, d)
        for begin in range(block * BLOCK, stop, CHUNK):
            part = slice(begin, min(begin + CHUNK, stop))
            std, columns = parts(part)
            rows = out[:, part]
            if std is None:
                rows.copy_(mean[part])
            else:
                for row, generator in zip(rows, generators, strict=True):
                    fill_normal(row, generator)
                torch.addcmul(mean[part], rows, std, out=rows)
            if columns is not None:
                add_low_rank(rows, columns, z2, first % GROUP, buffer[:, : rows.shape[1]])

    blocks = range(math.ceil(d / BLOCK))
    for _ in ordered_map(fill, [None] * min(default_workers(), len(blocks)), blocks):
        pass


def low_rank_normals(like: Tensor, k: int, seed: int, first: int, n: int) -> Float[Tensor, "m g k"]:
    """z₂ of each draw, at its place in whole groups."""
    before = first % GROUP
    z2 = like.new_zeros(math.ceil((before + n) / GROUP), GROUP, k)
    for number, row in enumerate(z2.flatten(0, 1)[before : before + n], start=first):
        fill_normal(row, generator_for(seed, number))
    return z2


def add_low_rank(
    rows: Float[Tensor, "n p"],
    columns: Float[Tensor, "k p"],
    z2: Float[Tensor, "m g k"],
    before: int,
    buffer: Float[Tensor, "g p"],
) -> None:
    """Adds the groups' products to the rows, which begin `before` places into the first group."""
    for start, of_group in zip(range(-before, len(rows), GROUP), z2, strict=True):
        torch.mm(of_group, columns, out=buffer)
        low, high = max(start, 0), min(start + GROUP, len(rows))
        rows[low:high].add_(buffer[low - start : high - start])


def fill_normal(out: Tensor, generator: Generator) -> None:
    """Fills a vector with standard normal values: of the CPU's generator, in float32."""
    if out.dtype == torch.float32 and out.device.type == "cpu":
        out.normal_(generator=generator)
    else:
        out.copy_(torch.randn(len(out), generator=generator, dtype=torch.float32))
