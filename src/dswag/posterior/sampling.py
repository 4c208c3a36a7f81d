"""Draws from a Gaussian with a diagonal and a low-rank part, the same bits on every processor."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from dswag.core import fast, normals
from dswag.core.threads import default_workers, ordered_map

PAIRS = 16
"""Pairs of draws, at most, whose z₂ are orthogonal to each other. A draw is a function of it: it is never changed."""

GROUP = 4
"""Draws that are made together where all are wanted but not at once: those of a pair share their normal numbers."""

CHUNK = 1 << 16
"""Elements whose draws stay in the processor's cache; no draw depends on it."""

TOGETHER = 8
"""Pairs, at most, for which the columns of a part of θ are read once."""

CHUNK_ELSEWHERE = 1 << 22
"""The same, on another device than the CPU."""

Parts = Callable[[slice], tuple[Float[Tensor, "p"] | None, Float[Tensor, "k p"] | None]]
"""Variances and columns of a part of θ; None for a part of the covariance that is not drawn from."""

Piece = tuple[int, int, int]
"""Elements that are here: the number of the first one in the whole θ and in what is here, and how many."""


def draw(
    mean: Float[Tensor, "d"],
    parts: Parts,
    k: int,
    *,
    weight: float,
    seed: int,
    first: int,
    out: Float[Tensor, "n d"],
    pieces: Sequence[Piece] | None = None,
) -> None:
    """Fills `out` with draws `first` to `first + n - 1` of the seed: mean ± (std z₁ + `weight` columnsᵀ z₂).

    Draws 2 j and 2 j + 1 are a pair: the same z₁ [d] and z₂ [k], once added and once subtracted (Hammersley & Morton
    1956). The z₂ of up to `PAIRS` pairs in succession are orthogonal. Each draw by itself is one of the Gaussian, and
    a mean over 2 `PAIRS` in succession has less noise than one over as many that know nothing of each other.

    Element i of θ takes number i of a stream that belongs to seed and pair, and the sum goes through the columns one
    after the other. So an element of a draw is a function of seed, number, and that element of mean, variance and
    columns: whatever the processor, the threads, the other draws, and the other elements that are here. `pieces` says
    which are, where this is a part of θ.
    """
    pairs = range(first // 2, (first + len(out) - 1) // 2 + 1)
    keys = [normals.key_of(seed, pair, 1) for pair in pairs]
    dtype = torch.promote_types(mean.dtype, torch.float32)
    wide = np.dtype(str(dtype).removeprefix("torch."))
    factors = np.stack([low_rank_normals(k, seed, pair) for pair in pairs]).astype(wide) * wide.type(weight)

    def fill(room: "_Room | _RoomElsewhere", chunk: tuple[int, slice]) -> None:
        start, part = chunk
        center = mean[part].detach().to(dtype)
        variance, columns = (None if x is None else x.detach().to(dtype) for x in parts(part))
        room.take(start, variance, columns, len(center))
        for begin in range(0, len(keys), TOGETHER):
            together = slice(begin, begin + TOGETHER)
            for pair, values in zip(pairs[together], room.noise(keys[together], factors[together]), strict=True):
                for number, combined in ((2 * pair, torch.add), (2 * pair + 1, torch.sub)):
                    if first <= number < first + len(out):
                        row = out[number - first, part]
                        if out.dtype == dtype:
                            combined(center, values, out=row)
                        else:
                            row.copy_(combined(center, values))

    on_cpu = mean.device.type == "cpu"
    size = CHUNK if on_cpu else CHUNK_ELSEWHERE
    chunks = [
        (there + begin, slice(here + begin, here + min(begin + size, count)))
        for there, here, count in (pieces or [(0, 0, len(mean))])
        for begin in range(0, count, size)
    ]
    workers = min(default_workers() if on_cpu else 1, len(chunks))
    loops = fast.loops(out.numel())
    size, together = min(size, max(1, len(mean))), min(TOGETHER, len(keys))
    rooms = [_Room(loops, dtype, size, together) if on_cpu else _RoomElsewhere() for _ in range(workers)]
    for _ in ordered_map(fill, rooms, chunks):
        pass


class _Room:
    """What one thread makes noise in, on the CPU: std z₁ + columnsᵀ z₂ of a part of θ, for several pairs."""

    def __init__(self, loops: Any, dtype: torch.dtype, size: int, pairs: int) -> None:
        self.loops = loops
        self.z1 = np.empty(size, np.float32)
        self.values = torch.empty(pairs, size, dtype=dtype, device="cpu")
        self.std: NDArray[Any] = np.empty(size, self.values.numpy().dtype)
        self.between = normals.Room(size)

    def take(self, start: int, variance: Tensor | None, columns: Tensor | None, p: int) -> None:
        """Turns to a part of θ."""
        self.start, self.p, self.columns = start, p, columns
        self.spread = None if variance is None else self.std[:p]
        if variance is not None:
            np.sqrt(variance.numpy(), out=self.spread)  # as IEEE 754 rounds it: PyTorch's is off by a digit at times

    def noise(self, keys: Sequence[int], factors: Float[np.ndarray, "m k"]) -> Iterable[Tensor]:
        """That of the pairs with these keys and factors."""
        values: Tensor = self.values[: len(keys), : self.p]
        z1 = self.z1[: self.p]
        for key, row in zip(keys, values.numpy(), strict=True):
            if self.spread is None:
                row[:] = 0
            else:
                self.loops.fill(z1, key, self.start, self.between)
                np.multiply(z1, self.spread, out=row)
        if self.columns is not None:
            self.loops.add_products(values.numpy(), self.columns.numpy(), factors, self.between)
        return values.unbind()


class _RoomElsewhere:
    """The same for another device: numbers are made on the CPU, and rounded there in the same steps."""

    def take(self, start: int, variance: Tensor | None, columns: Tensor | None, p: int) -> None:
        """Turns to a part of θ."""
        self.start, self.p, self.columns = start, p, columns
        self.spread = None if variance is None else variance.sqrt()

    def noise(self, keys: Sequence[int], factors: Float[np.ndarray, "m k"]) -> Iterable[Tensor]:
        """That of the pairs with these keys and factors, one after the other."""
        for key, of_pair in zip(keys, factors.tolist(), strict=True):
            values: Tensor | float = 0.0
            if self.spread is not None:
                z1 = np.empty(self.p, np.float32)
                normals.fill(z1, key, self.start)
                values = torch.from_numpy(z1).to(self.spread) * self.spread
            for column, factor in zip(() if self.columns is None else self.columns, of_pair, strict=False):
                values = values + column * factor
            yield torch.as_tensor(values)


def low_rank_normals(k: int, seed: int, pair: int) -> Float32[np.ndarray, "k"]:
    """z₂ of a pair, each standard normal by itself, and orthogonal to those of the pairs before it in its set.

    Normal vectors keep their lengths and are turned by Gram and Schmidt's steps: the direction that a step leaves is
    uniform, and independent of the length. In float64, with sums that are rounded once (`math.fsum`).
    """
    size = min(k, PAIRS)
    if not k:
        return np.empty(0, np.float32)
    *_, (unit, length) = _turned(k, seed, pair - pair % size, pair % size + 1)
    return (unit * length).astype(np.float32)


@lru_cache(maxsize=64)
def _turned(k: int, seed: int, first: int, n: int) -> list[tuple[NDArray[np.float64], float]]:
    """Directions and lengths of the first n pairs of a set."""
    before = _turned(k, seed, first, n - 1) if n > 1 else []
    z = np.empty(k, np.float32)
    normals.fill(z, normals.key_of(seed, first + n - 1, 2))
    rest = z.astype(np.float64)
    length = _length(rest)
    for unit, _ in before:
        rest = rest - math.fsum((rest * unit).tolist()) * unit
    left = _length(rest)
    return [*before, (rest / left if left else rest, length)]


def _length(vector: NDArray[np.float64]) -> float:
    return math.sqrt(math.fsum((vector * vector).tolist()))
