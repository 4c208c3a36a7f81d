"""Running moments of client weights (Algorithm 1, lines 25-32)."""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.columns import Columns, LastColumns, PrincipalColumns
from dswag.parameters import Layout
from dswag.posterior import GaussianPosterior
from dswag.tasks import PER_COORDINATE, TrainResult, prefixed, within
from dswag.threads import default_workers, ordered_map

CHUNK = 1 << 16
"""Elements handled at a time, so that what lies between two passes stays in the processor's cache."""

BLOCK = 1 << 20
"""Elements that one thread goes through before it takes the next."""

Snapshot = Float[Tensor, "d"] | Float[Tensor, "s d"] | nn.Module | Mapping[str, Tensor] | TrainResult
"""θ; all snapshots of one client; or what θ can be read from."""


class Moments:
    """Mean, variance and deviation columns of snapshots of θ, accumulated in place.

    Kept are sums of θ - anchor and of its square, in float64. Differences to a point near all snapshots lose nothing,
    while E[θ²] - (E θ)², as printed in line 32, cancels in float32
    (`test_variance_survives_where_the_printed_formula_cancels`). Sums also make merging an addition, so that neither
    the order of the snapshots nor the grouping of merges matters to the last digit of float32. They cost 16 bytes a
    parameter, where K = 20 columns cost 80.

    Where clients give several snapshots each, the scatter within clients is summed apart; the rest of the variance is
    that between clients.

    Args:
        anchor: θ [d] from which all snapshots start; the first snapshot if None.
        rank: K, the most deviation columns kept; 0 for none.
        columns: "last" keeps those of the K snapshots with the highest indices (line 28); "svd" the K principal
            directions of all snapshots.
        centering: "final" centres the columns on the final mean; "running" as printed in line 29, on the mean so far,
            which makes them depend on the order and lose part of the variance (docs/paper.md).
        layout: the parameters behind θ; needed to add state dicts, and kept in the posterior.

    Raises:
        ValueError: a rank of 1 or below 0, or principal columns of rank 0 or on a running mean.
    """

    def __init__(
        self,
        anchor: Float[Tensor, "d"] | None = None,
        *,
        rank: int = 20,
        columns: Literal["last", "svd"] = "last",
        centering: Literal["final", "running"] = "final",
        layout: Layout | None = None,
    ) -> None:
        if rank < 0 or rank == 1:
            raise ValueError(
                f"rank must be 0 or at least 2, got {rank}: the covariance divides by the number of columns minus one"
            )
        if columns == "svd" and not rank:
            raise ValueError('columns="svd" are principal directions: use a rank of at least 2')
        if (columns, centering) == ("svd", "running"):
            raise ValueError('columns="svd" are principal directions around the final mean: use centering="final"')
        self.rank = rank
        self.columns = columns
        self.centering = centering
        self.layout = layout
        self.count = 0
        self._within: Tensor | None = None  # allocated once a client has several snapshots
        self.anchor = None if anchor is None else anchor.detach().clone()
        if self.anchor is not None:
            self._allocate(self.anchor)

    def add(self, snapshot: Snapshot, *, index: int | None = None) -> None:
        """Takes in θ [d], all snapshots [s, d] of one client, a module, a state dict, or a client's result.

        `index` orders the columns; without one, clients count up from 0. Nothing changes if it raises.

        Raises:
            ValueError: a snapshot whose shape does not fit, or that is NaN or infinite.
        """
        thetas, key = self._read(snapshot, index)
        anchor = self._checked(thetas, key)
        self.count += len(thetas)  # n + 1 in line 27
        self._accumulate(thetas, anchor, 1)
        self._columns.add(thetas, anchor, [(key, number) for number in range(len(thetas))])  # l. 28-30

    def remove(self, snapshot: Snapshot, *, index: int) -> None:
        """Takes out what was added with this index: a client that withdraws. The sums are as if it had never come.

        Raises:
            ValueError: columns that have made others go, that are principal directions, or centred on a running mean;
                or more snapshots than there are.
        """
        thetas, key = self._read(snapshot, index)
        anchor = self._checked(thetas, key)
        if len(thetas) > self.count:
            raise ValueError(f"{len(thetas)} snapshots cannot be removed from {self.count}")
        self._columns.remove([(key, number) for number in range(len(thetas))])
        self.count -= len(thetas)
        self._accumulate(thetas, anchor, -1)

    def merge(self, other: Self) -> None:
        """Takes in all snapshots of another accumulator, whose anchor may be another.

        Raises:
            ValueError: printed columns, which depend on the order of the snapshots, or settings that differ.
        """
        mine, theirs = ((m.rank, m.columns, m.centering) for m in (self, other))
        if mine != theirs:
            raise ValueError(f"moments must agree in rank, columns and centering to be merged, got {mine} and {theirs}")
        if other.anchor is None:
            return
        anchor = self._anchor(other.anchor)
        shift = other.anchor.double() - anchor.double()
        self._columns.merge(other._columns, shift)
        self._squares.add_(other._squares).add_(2 * shift * other._sum + other.count * shift.square())
        self._sum.add_(other._sum).add_(shift, alpha=other.count)
        self.count += other.count
        if other._within is not None:
            self._within = other._within.clone() if self._within is None else self._within.add_(other._within)

    def empty(self) -> Self:
        """Moments of no snapshots, around the same anchor."""
        options = {"rank": self.rank, "columns": self.columns, "centering": self.centering, "layout": self.layout}
        return type(self)(self.anchor, **options)  # type: ignore[arg-type]

    def state(self) -> dict[str, Tensor]:
        """Anchor, sums and columns; nothing before there is an anchor.

        Principal directions are of whole vectors, so beside them nothing can be cut by coordinates.
        """
        if self.anchor is None:
            return {}
        sums = {"anchor": self.anchor, "sum": self._sum, "squares": self._squares}
        if self._within is not None:
            sums["within"] = self._within
        if self.columns == "last":
            sums = {f"{name}{PER_COORDINATE}": values for name, values in sums.items()}
        return {**sums, "count": torch.tensor(self.count), **prefixed("columns", self._columns.state())}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the moments of another."""
        self.anchor, self.count, self._within = None, 0, None
        if not state:
            return
        sums = {name.removesuffix(PER_COORDINATE): values.clone() for name, values in state.items() if "." not in name}
        self.anchor, self.count = sums["anchor"], int(sums["count"])
        self._allocate(self.anchor)
        self._sum, self._squares, self._within = sums["sum"], sums["squares"], sums.get("within")
        self._columns.load(within("columns", state))

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
        within = None
        if self._within is not None:
            within = torch.minimum((self._within / self.count).clamp_min_(0), variance)
        deviations = self._columns.centred(mean)
        dtype = deviations.dtype
        return GaussianPosterior(
            mean=(self.anchor + mean).to(dtype),
            variance=variance.to(dtype),
            deviations=deviations,
            count=self.count,
            layout=self.layout,
            variance_within=None if within is None else within.to(dtype),
            deviations_within=None if within is None else self._columns.within(),
        )

    def result(self) -> GaussianPosterior:
        """The posterior, under the name that folds give to their outcome."""
        return self.posterior()

    def _read(self, snapshot: Snapshot, index: int | None) -> tuple[Float[Tensor, "s d"], int]:
        if isinstance(snapshot, TrainResult):
            return snapshot.thetas, snapshot.index
        key = self.count if index is None else index
        if not isinstance(snapshot, Tensor):
            if self.layout is None and isinstance(snapshot, nn.Module):
                self.layout = Layout.of(snapshot)
            if self.layout is None:
                raise ValueError("a state dict needs a layout: Moments(layout=Layout.of(model))")
            snapshot = self.layout.flatten(snapshot)
        return (snapshot.detach()[None] if snapshot.dim() == 1 else snapshot.detach()), key

    def _checked(self, thetas: Float[Tensor, "s d"], key: int) -> Float[Tensor, "d"]:
        if thetas.dim() != 2 or not len(thetas):
            raise ValueError(f"a snapshot must be θ [d], or all of a client's [s, d], got shape {list(thetas.shape)}")
        if not torch.isfinite(thetas.sum()) and not torch.isfinite(thetas).all():
            raise ValueError(f"snapshot {key} is not finite: NaN or infinite weights would spoil all moments")
        anchor = self._anchor(thetas[0])
        if thetas.shape[1:] != anchor.shape:
            raise ValueError(f"a snapshot must have shape {list(anchor.shape)}, got {list(thetas.shape[1:])}")
        return anchor

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
        self._columns: Columns = (
            PrincipalColumns(anchor, self.rank)
            if self.columns == "svd"
            else LastColumns(anchor, self.rank, running=self.centering == "running")
        )

    def _accumulate(self, thetas: Float[Tensor, "s d"], anchor: Float[Tensor, "d"], sign: int) -> None:
        """Adds the snapshots' sums, or takes them off again (line 27), in place and block by block."""
        if len(thetas) > 1 and self._within is None:
            self._within = torch.zeros_like(self._sum)
        blocks = range(0, len(anchor), BLOCK)
        if len(blocks) == 1 or anchor.device.type != "cpu":
            self._accumulate_part(thetas, anchor, slice(None), sign)
            return

        def accumulate(_: None, start: int) -> None:
            self._accumulate_part(thetas, anchor, slice(start, start + BLOCK), sign)

        for _ in ordered_map(accumulate, [None] * min(default_workers(), len(blocks)), blocks):
            pass

    def _accumulate_part(
        self, thetas: Float[Tensor, "s d"], anchor: Float[Tensor, "d"], block: slice, sign: int
    ) -> None:
        several, vectors = len(thetas) > 1, [anchor, self._sum, self._squares, *thetas]
        if several and self._within is not None:
            vectors.append(self._within)
        base, step, own_sum = torch.empty(3, CHUNK, dtype=torch.float64, device=anchor.device)
        for parts in zip(*(vector[block].split(CHUNK) for vector in vectors), strict=True):
            total, squares, snapshots = parts[1], parts[2], parts[3 : 3 + len(thetas)]
            origin, difference, client = (buffer[: len(total)] for buffer in (base, step, own_sum))
            origin.copy_(parts[0])
            client.zero_()
            for snapshot in snapshots:
                difference.copy_(snapshot).sub_(origin)
                total.add_(difference, alpha=sign)
                squares.addcmul_(difference, difference, value=sign)
                if several:
                    client.add_(difference)
                    parts[-1].addcmul_(difference, difference, value=sign)
            if several:
                parts[-1].addcmul_(client, client, value=-sign / len(thetas))
