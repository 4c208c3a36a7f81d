"""Running moments of client weights and their deviation columns (Algorithm 1, lines 25-32)."""

from collections.abc import Iterator, Mapping
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.parameters import Layout
from dswag.posterior import GaussianPosterior
from dswag.tasks import TrainResult

CHUNK = 1 << 16
"""Elements handled at a time, so that what lies between two passes stays in the processor's cache."""


class Moments:
    """Mean, variance and the last K deviation columns of snapshots of θ, accumulated in place.

    Kept are sums of θ - anchor and of its square, in float64. Differences to a point near all snapshots lose nothing,
    while E[θ²] - (E θ)², as printed in line 32, cancels in float32
    (`test_variance_survives_where_the_printed_formula_cancels`). Sums also make merging an addition, so that neither
    the order of the snapshots nor the grouping of merges matters to the last digit of float32. They cost 16 bytes a
    parameter, where K = 20 columns cost 80.

    Args:
        anchor: θ [d] from which all snapshots start; the first snapshot if None.
        rank: K, the number of deviation columns kept, of the snapshots with the highest indices; 0 for none.
        centering: "final" centres the columns on the final mean; "running" as printed in line 29, on the mean so far,
            which makes them depend on the order and lose part of the variance (docs/paper.md).
        layout: the parameters behind θ; needed to add modules or state dicts, and kept in the posterior.

    Raises:
        ValueError: a rank of 1 or below 0.
    """

    def __init__(
        self,
        anchor: Float[Tensor, "d"] | None = None,
        *,
        rank: int = 20,
        centering: Literal["final", "running"] = "final",
        layout: Layout | None = None,
    ) -> None:
        if rank < 0 or rank == 1:
            raise ValueError(
                f"rank must be 0 or at least 2, got {rank}: the covariance divides by the number of columns minus one"
            )
        self.anchor = None if anchor is None else anchor.detach().clone()
        self.rank = rank
        self.centering = centering
        self.layout = layout
        self.count = 0
        self._keys: list[tuple[int, int]] = []  # (index, snapshot) of the column in each slot
        if self.anchor is not None:
            self._allocate(self.anchor)

    def add(
        self, snapshot: Float[Tensor, "d"] | nn.Module | Mapping[str, Tensor] | TrainResult, *, index: int | None = None
    ) -> None:
        """Takes in θ, a module, a state dict, or all snapshots of a client's result.

        `index` orders the columns; without one, snapshots count up from 0. Nothing changes if it raises.

        Raises:
            ValueError: a snapshot whose shape does not fit, or that is NaN or infinite.
        """
        if isinstance(snapshot, TrainResult):
            for number, theta in enumerate(snapshot.thetas):
                self._add(theta, (snapshot.index, number))
        else:
            self._add(self._flatten(snapshot), (self.count if index is None else index, 0))

    def merge(self, other: Self) -> None:
        """Takes in all snapshots of another accumulator, whose anchor may be another.

        Raises:
            ValueError: printed columns, which depend on the order of the snapshots, or ranks that differ.
        """
        if (self.rank, self.centering) != (other.rank, other.centering):
            raise ValueError(
                f"moments must agree in rank and centering to be merged, got {self.rank}, {self.centering} "
                f"and {other.rank}, {other.centering}"
            )
        if self.centering == "running":
            raise ValueError('columns centred on the running mean cannot be merged: use centering="final"')
        if other.anchor is None:
            return
        anchor = self._anchor(other.anchor)
        shift = other.anchor.double() - anchor.double()
        self._squares.add_(other._squares).add_(2 * shift * other._sum + other.count * shift.square())
        self._sum.add_(other._sum).add_(shift, alpha=other.count)
        self.count += other.count
        for key, column in zip(other._keys, other._columns, strict=False):
            slot = self._slot(key)
            if slot is not None:
                torch.add(column, shift, out=self._columns[slot])

    def posterior(self) -> GaussianPosterior:
        """The Gaussian over weights (line 32): mean, variance (divided by n, not n - 1) and columns [k, d].

        Raises:
            ValueError: fewer than two snapshots, which have no spread.
        """
        if self.anchor is None or self.count < 2:
            raise ValueError(
                f"a posterior needs at least 2 snapshots, got {self.count}: "
                "use more explorers, more cycles, or more snapshots per cycle"
            )
        mean = self._sum / self.count
        variance = (self._squares / self.count - mean.square()).clamp_min_(0)  # l. 32
        columns = self._columns[sorted(range(len(self._keys)), key=self._keys.__getitem__)]
        if self.centering == "final":
            columns -= mean
        dtype = columns.dtype
        return GaussianPosterior(
            mean=(self.anchor + mean).to(dtype),
            variance=variance.to(dtype),
            deviations=columns,
            count=self.count,
            layout=self.layout,
        )

    def result(self) -> GaussianPosterior:
        """The posterior, under the name that folds give to their outcome."""
        return self.posterior()

    def _anchor(self, first: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """The anchor, which the first snapshot becomes where none was given."""
        if self.anchor is None:
            self.anchor = first.detach().clone()
            self._allocate(self.anchor)
        return self.anchor

    def _allocate(self, anchor: Float[Tensor, "d"]) -> None:
        if anchor.dim() != 1:
            raise ValueError(f"θ must be a vector [d], got shape {list(anchor.shape)}")
        self._sum = torch.zeros_like(anchor, dtype=torch.float64)
        self._squares = torch.zeros_like(anchor, dtype=torch.float64)
        dtype = torch.promote_types(anchor.dtype, torch.float32)
        self._columns = anchor.new_empty(self.rank, len(anchor), dtype=dtype)

    def _flatten(self, snapshot: Tensor | nn.Module | Mapping[str, Tensor]) -> Float[Tensor, "d"]:
        if isinstance(snapshot, Tensor):
            return snapshot.detach()
        if self.layout is None:
            if not isinstance(snapshot, nn.Module):
                raise ValueError("a state dict needs a layout: Moments(layout=Layout.of(model))")
            self.layout = Layout.of(snapshot)
        return self.layout.flatten(snapshot)

    def _add(self, theta: Float[Tensor, "d"], key: tuple[int, int]) -> None:
        if not torch.isfinite(theta).all():
            raise ValueError(f"snapshot {key[0]} is not finite: NaN or infinite weights would spoil all moments")
        anchor = self._anchor(theta)
        if theta.shape != anchor.shape:
            raise ValueError(f"a snapshot must have shape {list(anchor.shape)}, got {list(theta.shape)}")
        self.count += 1  # n + 1 in line 27
        for part in _chunks(theta):
            step = theta[part].double() - anchor[part]
            self._sum[part].add_(step)
            self._squares[part].addcmul_(step, step)
        slot = self._slot(key)  # l. 28
        if slot is not None:
            column = self._columns[slot]
            torch.sub(theta, anchor, out=column)  # l. 29
            if self.centering == "running":
                column -= self._sum / self.count

    def _slot(self, key: tuple[int, int]) -> int | None:
        """The slot for a column: a free one, or that of the lowest key if the column's own is higher (line 28)."""
        if len(self._keys) < self.rank:
            self._keys.append(key)
            return len(self._keys) - 1
        if not self.rank or key < min(self._keys):
            return None
        slot = self._keys.index(min(self._keys))
        self._keys[slot] = key
        return slot


def _chunks(vector: Tensor) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, len(vector), CHUNK))
