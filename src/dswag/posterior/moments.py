"""Running moments of client weights (Algorithm 1, lines 25-32)."""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.core.choices import check_choice
from dswag.core.parameters import Layout
from dswag.core.shards import Shards, split
from dswag.federation.client_results import TrainResult
from dswag.federation.coordinates import PER_COORDINATE
from dswag.federation.folds import prefixed, within
from dswag.posterior.deviations import Columns, LastColumns, PrincipalColumns, check_rank
from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.ledger import Ledger
from dswag.posterior.welford import Scatter

Snapshot = Float[Tensor, "d"] | Float[Tensor, "s d"] | nn.Module | Mapping[str, Tensor] | TrainResult
"""θ; all snapshots of one client; or something that θ can be read from."""


class Moments:
    """Mean, variance and deviation columns of snapshots of θ, accumulated in place.

    What is kept is the first snapshot, the sum of all differences to it, and the sum of squares around the mean: 12
    bytes per parameter in float32, and 4 more for each column. The formula printed in line 32, E[θ²] - (E θ)², cancels
    in float32 (`test_variance_survives_where_the_printed_formula_cancels`). For up to 50 snapshots every variance is
    within 1e-6 of two passes in float64, whatever the order of the snapshots and the grouping of merges.

    If clients give several snapshots each, the scatter within clients is summed separately; the rest of the variance is
    that between clients.

    Args:
        anchor: a θ [d] that shows size, dtype and device, such as that from which all snapshots start; the first
            snapshot if None. In float64, differences to it are summed; in float32, differences to the first snapshot.
        rank: K, the most deviation columns kept; 0 for none.
        columns: "last" keeps those of the K snapshots with the highest indices (line 28); "svd" the K principal
            directions of all snapshots.
        centering: "final" centers the columns on the final mean; "running", as printed in line 29, on the mean so far:
            the columns then depend on the order of the snapshots and lose part of the variance (docs/paper.md).
        layout: the parameters behind θ; needed to add state dicts, and kept in the posterior.
        dtype: of the sums, float32 or float64; if None, that of θ, but at least float32. With float64 sums, order,
            grouping and clients that are removed again change at most the last digit of a float32 posterior.

    Raises:
        ValueError: a rank of 1, below 0 or above 10,000, principal columns of rank 0 or on a running mean, an unknown
            kind of columns or centering, or another dtype.
    """

    def __init__(
        self,
        anchor: Float[Tensor, "d"] | None = None,
        *,
        rank: int = 20,
        columns: Literal["last", "svd"] = "last",
        centering: Literal["final", "running"] = "final",
        layout: Layout | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("columns", columns, ("last", "svd"))
        check_choice("centering", centering, ("final", "running"))
        check_rank(rank)
        if columns == "svd" and not rank:
            raise ValueError('columns="svd" are principal directions: use a rank of at least 2')
        if (columns, centering) == ("svd", "running"):
            raise ValueError('columns="svd" are principal directions around the final mean: use centering="final"')
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}: others have too few digits to sum in")
        self.rank = rank
        self.columns = columns
        self.centering = centering
        self.layout = layout
        self.dtype = dtype
        self._layout_found = False  # in the first module, rather than given
        self._next_index = 0
        self._ledger = Ledger()
        self._scatter: Scatter | None = None  # allocated once it is known what θ looks like
        self._columns: Columns
        if anchor is not None:
            self._allocate(anchor.detach())

    @property
    def count(self) -> int:
        """How many snapshots were taken in."""
        return 0 if self._scatter is None else self._scatter.count

    def add(self, snapshot: Snapshot, *, index: int | None = None, device: str | torch.device | None = None) -> None:
        """Takes in θ [d], all snapshots [s, d] of one client, a module, a state dict, or a client's result.

        `index` orders the columns; without one, it is the next after the highest so far. The snapshot is moved to
        `device`, if that is given, before it is taken in. Nothing changes if it raises.

        Raises:
            ValueError: a snapshot whose shape or device does not fit, or that is NaN or infinite; or a module with
                other trainable parameters than the first.
        """
        thetas, key, layout = self._read(snapshot, index)
        thetas = thetas.to(device)
        scatter = self._fitting(thetas, key)
        self._layout_found = self._layout_found or (self.layout is None and layout is not None)
        self.layout, self._next_index = layout, max(self._next_index, key + 1)
        self._ledger.add(key, len(thetas))
        rows = self._columns.reserve([(key, number) for number in range(len(thetas))])  # l. 28-30
        scatter.add(thetas, rows, running=self.centering == "running")

    def layout_for(self, module: nn.Module) -> Layout:
        """The parameters of a module that are a snapshot: those of the layout given, or else all trainable ones.

        Raises:
            ValueError: other trainable parameters than those of the first module that was added; or none that
                `Layout.of` takes; or a module split among processes, and columns that are principal directions.
        """
        if self.columns == "svd" and split(module):
            raise ValueError(
                'columns="svd" are principal directions of the whole θ, and each process has a part of this module: '
                'use columns="last"'
            )
        if self.layout is not None and not self._layout_found:
            apart = split(module) and not isinstance(self.layout, Shards)
            return Shards.like(self.layout, module) if apart else self.layout
        layout = Shards.of(module) if split(module) else Layout.of(module)
        if self.layout is not None and layout != self.layout:
            names, before = set(layout.names), set(self.layout.names)
            changed = [f"{name} was not" for name in layout.names if name not in before]
            changed += [f"{name} was trainable then" for name in self.layout.names if name not in names]
            raise ValueError(
                f"snapshot {self._next_index} must have the trainable parameters of the first: "
                f"{(changed or ['they have other shapes'])[0]}; begin with the snapshots when no layer is frozen or "
                "unfrozen any more, or give Moments a layout"
            )
        return layout

    def remove(self, snapshot: Snapshot, *, index: int) -> None:
        """Takes out what was added with this index, for a client that withdraws: as if it had never been added.

        In float32 the rounding errors of the larger sums remain. If the client was m standard deviations away from the
        others, the variance keeps a relative error of about m² 1e-7. Use dtype=torch.float64 if clients are removed
        because they are outliers.

        Where its columns are kept, they are compared with the snapshots; otherwise it is the caller who knows that
        these are the ones that were added.

        Raises:
            ValueError: nothing that was added with this index, or with as many snapshots, or others; several that were
                added with this index, of which it is not known whose columns are whose; other columns that were dropped
                to make room for the client's; columns that are principal directions, or centered on the running mean.
        """
        thetas, _, _ = self._read(snapshot, index)
        found = self._ledger.times(index)
        if not self._ledger.times(index, len(thetas)):
            had = f"index {index} was added with another number" if found else f"there was none with index {index}"
            raise ValueError(f"nothing can be removed that was not added: {had}, for a removal of {len(thetas)}")
        if found > 1 and self.rank:
            raise ValueError(
                f"index {index} was added {found} times, and it is not known whose columns are whose: "
                "give every client its own index, also in accumulators that are merged, or use rank=0"
            )
        scatter = self._fitting(thetas, index)
        differences = thetas.to(scatter.anchor.dtype) - scatter.anchor
        rounding = 16 * torch.finfo(differences.dtype).eps * float(thetas.norm() + scatter.anchor.norm())
        self._columns.remove([(index, number) for number in range(len(thetas))], differences, rounding)
        self._ledger.remove(index, len(thetas))
        scatter.remove(thetas)

    def merge(self, other: Self) -> None:
        """Takes in all snapshots of another accumulator, which stays as it is.

        Raises:
            ValueError: columns centered on the running mean, which depend on the order of the snapshots; or different
                settings, shapes or devices.
        """
        mine, theirs = ((m.rank, m.columns, m.centering) for m in (self, other))
        if mine != theirs:
            raise ValueError(f"moments must agree in rank, columns and centering to be merged, got {mine} and {theirs}")
        if self.centering == "running":
            raise ValueError('columns centered on the running mean cannot be merged: use centering="final"')
        if other._scatter is None or not other.count:
            return
        scatter = self._fitting(other._scatter.anchor[None], other._next_index)
        shift = scatter.shift(other._scatter)
        self._columns.merge(other._columns, shift)
        scatter.merge(other._scatter, shift)
        self._ledger.merge(other._ledger)
        self._next_index = max(self._next_index, other._next_index)

    def posterior(self) -> GaussianPosterior:
        """The Gaussian over weights (line 32): mean, variance (divided by n, not n - 1) and columns [k, d].

        Snapshots can go on coming in afterwards: what is here stays as it is.

        Raises:
            ValueError: fewer than two snapshots, which have no spread.
        """
        return self._made(self._with_spread(), self._columns, take=False)

    def finish(self) -> GaussianPosterior:
        """The posterior, in the memory that its columns have here: afterwards no snapshots are left here.

        It is that of `posterior`, bit for bit, without a moment at which the columns exist twice.

        Raises:
            ValueError: fewer than two snapshots, which have no spread; they stay.
        """
        scatter, columns = self._with_spread(), self._columns
        self._scatter, self._ledger, self._next_index = None, Ledger(), 0
        del self._columns
        return self._made(scatter, columns, take=True)

    def result(self) -> GaussianPosterior:
        """The posterior; folds call their outcome `result`."""
        return self.posterior()

    def empty(self) -> Self:
        """Moments of no snapshots, of the same kind of θ."""
        return type(self)(
            None if self._scatter is None else self._scatter.anchor,
            rank=self.rank,
            columns=self.columns,
            centering=self.centering,
            layout=self.layout,
            dtype=self.dtype,
        )

    def state(self) -> dict[str, Tensor]:
        """Anchor, sums and columns; nothing before it is known what θ looks like.

        Principal directions are of whole vectors, so beside them nothing can be cut by coordinates.
        """
        if self._scatter is None:
            return {}
        suffix = PER_COORDINATE if self.columns == "last" else ""
        vectors = {f"{name}{suffix}": values for name, values in self._scatter.vectors().items()}
        counts = torch.tensor([self.count, self._next_index])
        return {
            **prefixed("scatter", vectors),
            "counts": counts,
            "ledger": self._ledger.state(),
            **prefixed("columns", self._columns.state()),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the moments of another."""
        self._scatter, self._ledger, self._next_index = None, Ledger(), 0
        if not state:
            return
        vectors = {name.removesuffix(PER_COORDINATE): values for name, values in within("scatter", state).items()}
        count, self._next_index = state["counts"].tolist()
        self._allocate(vectors["anchor"]).load(vectors, count)
        self._ledger.load(state["ledger"])
        self._columns.load(within("columns", state))

    def _with_spread(self) -> Scatter:
        if self._scatter is None or self.count < 2:
            raise ValueError(
                f"a posterior needs at least 2 snapshots, got {self.count}: "
                "use more explorers, more cycles, or more snapshots per cycle"
            )
        return self._scatter

    def _made(self, scatter: Scatter, columns: Columns, *, take: bool) -> GaussianPosterior:
        mean, variance, within = scatter.moments()  # l. 32
        if take:
            scatter.forget_squares()
        return GaussianPosterior(
            mean=mean,
            variance=variance,
            deviations=columns.centered(scatter.mean, take=take),
            count=scatter.count,
            layout=self.layout,
            variance_within=within,
            deviations_within=None if within is None else columns.within(take=take),
        )

    def _read(self, snapshot: Snapshot, index: int | None) -> tuple[Float[Tensor, "s d"], int, Layout | None]:
        """All snapshots, their index, and the layout by which they were read."""
        layout = self.layout
        if isinstance(snapshot, TrainResult):
            return snapshot.thetas, snapshot.index, layout
        key = self._next_index if index is None else index
        if not isinstance(snapshot, Tensor):
            if isinstance(snapshot, nn.Module):
                layout = self.layout_for(snapshot)
            if layout is None:
                raise ValueError("a state dict needs a layout: Moments(layout=Layout.of(model))")
            snapshot = layout.flatten(snapshot)
        thetas = snapshot.detach()[None] if snapshot.dim() == 1 else snapshot.detach()
        if layout is not None and thetas.dim() == 2 and len(thetas):
            layout.check(thetas[0])
        return thetas, key, layout

    def _fitting(self, thetas: Float[Tensor, "s d"], key: int) -> Scatter:
        """What takes these snapshots in, if they are fit to be: nothing has changed yet where they are not."""
        if thetas.dim() != 2 or not len(thetas):
            raise ValueError(f"a snapshot must be θ [d], or all of a client's [s, d], got shape {list(thetas.shape)}")
        if not torch.isfinite(thetas.sum()) and not torch.isfinite(thetas).all():
            raise ValueError(f"snapshot {key} is not finite: NaN or infinite weights would spoil all moments")
        scatter = self._scatter or self._allocate(thetas[0])
        if thetas.shape[1:] != scatter.anchor.shape or thetas.device != scatter.anchor.device:
            raise ValueError(
                f"a snapshot must have shape {list(scatter.anchor.shape)} on {scatter.anchor.device}, "
                f"got {list(thetas.shape[1:])} on {thetas.device}"
            )
        return scatter

    def _allocate(self, like: Float[Tensor, "d"]) -> Scatter:
        if like.dim() != 1 or not len(like) or not like.is_floating_point():
            raise ValueError(f"θ must be a vector [d] of real numbers, got {like.dtype} of shape {list(like.shape)}")
        anchor = like.to(torch.promote_types(like.dtype, torch.float32), copy=True)
        self._scatter = Scatter(anchor, self.dtype or anchor.dtype)
        self._columns = (
            PrincipalColumns(self._scatter.anchor, self.rank)
            if self.columns == "svd"
            else LastColumns(self._scatter.anchor, self.rank, running=self.centering == "running")
        )
        return self._scatter
