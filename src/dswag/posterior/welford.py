"""Sum of snapshots and scatter around their mean, in place (Algorithm 1, line 27)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.threads import default_workers, ordered_map

CHUNK = 1 << 16
"""Elements handled at a time, so that what lies between two passes stays in the processor's cache."""

BLOCK = 1 << 20
"""Elements that one thread goes through before it takes the next."""

Rows = Sequence[tuple[Float[Tensor, "d"] | None, Float[Tensor, "d"] | None]]
"""Where each snapshot's difference to the anchor goes, and where that to its client's mean; None for nowhere."""


class Scatter:
    """Sum of θ - anchor and sum of (θ - mean)² [d], changed in place.

    Snapshots are taken in as by Welford (1962), and out by the same steps backwards; merging joins two samples as Chan,
    Golub & LeVeque (1983) do.

    In float32 the anchor becomes the first snapshot, wherever all of them started from: of n numbers none lies further
    from their mean than √(n - 1) standard deviations (Samuelson 1968). So the sum of the differences is never so much
    larger than the scatter that its rounding would spoil it (`test_drift_from_the_anchor_costs_no_digits`). Float64 has
    digits to spare: there the anchor stays, and sums around the same one are exact in any grouping.
    """

    def __init__(self, anchor: Float[Tensor, "d"], dtype: torch.dtype) -> None:
        self.count = 0
        self.anchor = anchor
        self.sum = torch.zeros_like(anchor, dtype=dtype)
        self.total = torch.zeros_like(self.sum)
        self.within: Tensor | None = None  # the part within clients, allocated once a client has several snapshots

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """Of θ - anchor."""
        return self.sum / self.count

    def add(self, thetas: Float[Tensor, "s d"], rows: Rows, *, running: bool = False) -> None:
        """Takes in a client's snapshots and fills their rows: with θ less the mean so far if `running`."""
        self._move(thetas[0])
        self._take(thetas, rows, 1, running)

    def remove(self, thetas: Float[Tensor, "s d"]) -> None:
        """Takes a client's snapshots out again."""
        self._take(thetas, [(None, None)] * len(thetas), -1, False)

    def shift(self, other: Self) -> Float[Tensor, "d"]:
        """How far another's anchor lies from this one's, which goes there first if it may."""
        self._move(other.anchor)
        return _difference(other.anchor, self.anchor, torch.empty_like(self.sum))

    def merge(self, other: Self, shift: Float[Tensor, "d"]) -> None:
        """Takes in another's, whose anchor lies `shift` from this one's."""
        before, self.count = self.count, self.count + other.count
        step = torch.add(shift, other.sum, alpha=1 / other.count).sub_(self.sum, alpha=1 / max(before, 1))
        self.total.add_(other.total).addcmul_(step, step, value=before * other.count / self.count)
        self.sum.add_(other.sum).add_(shift, alpha=other.count)
        if other.within is not None:
            self.within = other.within.clone() if self.within is None else self.within.add_(other.within)

    def moments(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"], Float[Tensor, "d"] | None]:
        """Mean and variance (divided by n) of θ, and its part within clients, in θ's dtype; each sum is rounded once.

        What was removed may leave less than nothing of a variance, which counts as nothing.
        """
        mean, variance = torch.empty_like(self.anchor), torch.empty_like(self.anchor)
        within = None if self.within is None else torch.empty_like(self.anchor)
        for start in range(0, len(mean), CHUNK):
            part = slice(start, start + CHUNK)
            mean[part] = self.anchor[part] + self.sum[part] / self.count
            whole = (self.total[part] / self.count).clamp_min_(0)
            variance[part] = whole
            if within is not None and self.within is not None:
                within[part] = torch.minimum((self.within[part] / self.count).clamp_min_(0), whole)
        return mean, variance, within

    def forget_squares(self) -> None:
        """Gives back the memory of all but the mean."""
        self.total, self.within = self.total.new_empty(0), None

    def vectors(self) -> dict[str, Tensor]:
        """All that is kept beside the count, by name."""
        kept = {"anchor": self.anchor, "sum": self.sum, "total": self.total}
        return kept if self.within is None else {**kept, "within": self.within}

    def load(self, vectors: Mapping[str, Tensor], count: int) -> None:
        """Takes on, being new, copies of what another kept of so many snapshots."""
        self.count = count
        for name, values in vectors.items():
            setattr(self, name, values.clone())

    def _move(self, first: Float[Tensor, "d"]) -> None:
        if not self.count and self.sum.dtype == torch.float32:
            self.anchor.copy_(first)

    def _take(self, thetas: Float[Tensor, "s d"], rows: Rows, sign: int, running: bool) -> None:
        """Elementwise, so that nothing depends on the blocks, nor on how many of them are at work at a time."""
        if len(thetas) > 1 and self.within is None:
            self.within = torch.zeros_like(self.total)
        d, on_cpu = len(self.anchor), self.anchor.device.type == "cpu"
        block, chunk = (BLOCK, CHUNK) if on_cpu else (d, d)
        groups: list[Iterable[Tensor | None]] = [thetas, *zip(*rows, strict=True)]

        def take(_: None, start: int) -> None:
            def split(vector: Tensor | None) -> Iterable[Any]:
                return repeat(None) if vector is None else torch.split(vector[start : start + block], chunk)

            buffers = self.sum.new_empty(3 if len(thetas) > 1 else 2, min(chunk, d)).unbind()
            vectors = map(split, (self.anchor, self.sum, self.total, self.within))
            for anchor, sums, total, within, parts, rows, own_rows in zip(
                *vectors, *(zip(*[split(vector) for vector in group], strict=False) for group in groups), strict=False
            ):
                free = buffers if len(anchor) == chunk else [buffer[: len(anchor)] for buffer in buffers]
                self._welford(anchor, sums, total, zip(parts, rows, strict=True), sign, running, free)
                if len(thetas) > 1:
                    within.add_(_own_scatter(parts, own_rows, free), alpha=sign)

        blocks = range(0, d, block)
        for _ in ordered_map(take, [None] * min(default_workers(), len(blocks)), blocks):
            pass
        self.count += sign * len(thetas)

    def _welford(
        self,
        anchor: Tensor,
        sums: Tensor,
        total: Tensor,
        snapshots: Iterable[tuple[Tensor, Tensor | None]],
        sign: int,
        running: bool,
        buffers: Sequence[Tensor],
    ) -> None:
        """Takes parts of snapshots in, one by one, or out."""
        n = self.count
        difference, step = buffers[:2]
        for theta, row in snapshots:
            n, before = n + sign, n
            _difference(theta, anchor, difference)
            torch.sub(difference, sums, alpha=1 / max(before, 1), out=step)
            sums.add_(difference, alpha=sign)
            if n:
                total.addcmul_(step, step, value=sign * before / n)
            else:
                sums.zero_()
                total.zero_()
            if row is not None and running:
                torch.mul(step, before / n, out=row)  # θ less the mean with it
            elif row is not None:
                row.copy_(difference)


def _own_scatter(thetas: Sequence[Tensor], rows: Sequence[Tensor | None], buffers: Sequence[Tensor]) -> Tensor:
    """The scatter of a client's snapshots around its mean, in differences to the first of them; fills the rows."""
    mean, difference, total = buffers
    for buffer in (mean, total):
        buffer.zero_()
    for theta in thetas[1:]:
        mean.add_(_difference(theta, thetas[0], difference), alpha=1 / len(thetas))
    for theta, row in zip(thetas, rows, strict=True):
        _difference(theta, thetas[0], difference).sub_(mean)
        total.addcmul_(difference, difference)
        if row is not None:
            row.copy_(difference)
    return total


def _difference(theta: Tensor, origin: Tensor, out: Tensor) -> Tensor:
    """θ less the origin, in the widest dtype of all three: what is near 0 is rounded after the subtraction alone."""
    wide = torch.promote_types(theta.dtype, origin.dtype)
    if torch.promote_types(wide, out.dtype) == wide:
        return torch.sub(theta, origin, out=out)
    return out.copy_(theta).sub_(origin)
