"""The deviation columns D of the low-rank part (Algorithm 1, lines 28-30): which are kept, and around what."""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.posterior.welford import Rows

CHUNK = 1 << 16
"""Elements of θ brought to float64 at a time."""

Key = tuple[int, int]
"""(index of the task, number of the snapshot): what orders columns."""


class Columns(Protocol):
    """At most K columns [k, d] of snapshots, kept as differences to an anchor; changed in place."""

    def reserve(self, keys: Sequence[Key]) -> Rows:
        """Where the caller puts the differences of a client's snapshots, before anything else happens here."""

    def merge(self, other: Self, shift: Float[Tensor, "d"]) -> None:
        """Takes in another's, whose differences are to an anchor that lies `shift` from this one's."""

    def remove(self, keys: Sequence[Key]) -> None:
        """Takes out a client's. Raises ValueError where that is not possible any more; nothing changes then."""

    def centered(self, mean: Float[Tensor, "d"]) -> Float[Tensor, "k d"]:
        """New columns D, by which D Dᵀ / (k - 1) is the low-rank covariance, centered on `mean` [d]."""

    def within(self) -> Float[Tensor, "k d"] | None:
        """The part of each column that lies within its client: θ less its client's mean; None where not known."""

    def state(self) -> dict[str, Tensor]:
        """All that was taken in, as `Fold.state`."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on, being empty, what another with the same settings took in."""


class LastColumns:
    """The columns of the last K snapshots by key, whatever the order in which they come: a ring, copied nowhere.

    With `running`, what comes in is centered already, on the mean by then, as line 29 is printed.
    """

    def __init__(self, like: Float[Tensor, "d"], rank: int, *, running: bool = False) -> None:
        self.rank = rank
        self.running = running
        self._keys: list[Key] = []  # of the column in each slot
        self._differences = like.new_empty(rank, len(like))
        self._within: Tensor | None = None  # allocated once a client has several snapshots
        self._displaced = False

    def reserve(self, keys: Sequence[Key]) -> Rows:
        """Slots for those that belong to the last K."""
        if len(keys) > 1 and self._within is None and not self.running:
            self._within = torch.zeros_like(self._differences)
        slots = [self._slot(key) for key in keys]
        if len(keys) == 1 and self._within is not None and slots[0] is not None:
            self._within[slots[0]] = 0
        return [
            (None, None)
            if slot is None
            else (self._differences[slot], None if self._within is None or len(keys) == 1 else self._within[slot])
            for slot in slots
        ]

    def merge(self, other: Self, shift: Float[Tensor, "d"]) -> None:
        """Stores the other's that belong to the last K."""
        for their_slot, key in enumerate(other._keys):
            slot = self._slot(key)
            if slot is not None:
                torch.add(other._differences[their_slot], shift, out=self._differences[slot])
                self._set_within(slot, None if other._within is None else other._within[their_slot])
        self._displaced = self._displaced or other._displaced

    def remove(self, keys: Sequence[Key]) -> None:
        """Frees the columns' slots; refused once others made room for them."""
        if self.running:
            raise ValueError('columns centered on the running mean cannot be removed: use centering="final"')
        held = [slot for slot, key in enumerate(self._keys) if key in keys]
        if len(held) < len(keys) and not self._displaced:
            raise ValueError(f"nothing can be removed that was not added: {len(held)} of {len(keys)} snapshots were")
        if held and self._displaced:
            raise ValueError(
                f"the columns of {keys[0][0]} cannot be removed: earlier columns made room for them and are gone; "
                "use rank=0, or a rank of at least the number of snapshots"
            )
        kept = [slot for slot in range(len(self._keys)) if slot not in held]
        self._differences[: len(kept)] = self._differences[kept]
        if self._within is not None:
            self._within[: len(kept)] = self._within[kept]
        self._keys = [self._keys[slot] for slot in kept]

    def centered(self, mean: Float[Tensor, "d"]) -> Float[Tensor, "k d"]:
        """The columns in the order of their keys."""
        columns = self._differences[self._order()]
        return columns if self.running else columns.sub_(mean)

    def within(self) -> Float[Tensor, "k d"] | None:
        """Zero for the column of a client's only snapshot; None where every client had but one, or if running."""
        return None if self._within is None or self.running else self._within[self._order()]

    def state(self) -> dict[str, Tensor]:
        """The columns with their keys."""
        k = len(self._keys)
        state = {"keys": torch.tensor(self._keys).view(k, 2), "differences [d]": self._differences[:k]}
        if self._within is not None:
            state["within [d]"] = self._within[:k]
        return {**state, "displaced": torch.tensor(self._displaced)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the columns of another."""
        self._keys = [(index, number) for index, number in state["keys"].tolist()]
        k = len(self._keys)
        self._differences[:k] = state["differences [d]"]
        if "within [d]" in state:
            self._within = torch.zeros_like(self._differences)
            self._within[:k] = state["within [d]"]
        self._displaced = bool(state["displaced"])

    def _order(self) -> list[int]:
        return sorted(range(len(self._keys)), key=self._keys.__getitem__)

    def _slot(self, key: Key) -> int | None:
        """A free slot, or that of the lowest key if this one is higher (line 28)."""
        if len(self._keys) < self.rank:
            self._keys.append(key)
            return len(self._keys) - 1
        self._displaced = True
        if not self.rank or key < min(self._keys):
            return None
        slot = self._keys.index(min(self._keys))
        self._keys[slot] = key
        return slot

    def _set_within(self, slot: int, values: Tensor | None) -> None:
        if values is None and self._within is None:
            return
        if self._within is None:
            self._within = torch.zeros_like(self._differences)
        self._within[slot] = 0 if values is None else values


class PrincipalColumns:
    """The K principal directions of all snapshots, however many: D Dᵀ / (k - 1) is close to their whole covariance.

    Incremental principal components with an updated mean (Ross, Lim, Lin & Yang 2008, Section 2.1): blocks of K
    snapshots join the K directions so far, and the best K directions of both go on. Exact for up to K + 1 snapshots, or
    whenever the snapshots lie in K dimensions; otherwise what is dropped on the way is lost.
    """

    def __init__(self, like: Float[Tensor, "d"], rank: int) -> None:
        self.rank = rank
        self._block = like.new_empty(rank, len(like))  # snapshots that have not joined yet
        self._waiting = 0
        self._rows = like.new_empty(0, len(like))  # R, whose RᵀR is the scatter around the mean
        self._mean = torch.zeros_like(like, dtype=torch.float64)
        self._count = 0

    def reserve(self, keys: Sequence[Key]) -> Rows:
        """A row for every snapshot; those that came before join the directions first where both are more than K."""
        if self._waiting + len(keys) > self.rank:
            self._join_block()
        if len(keys) > len(self._block):
            self._block = self._block.new_empty(len(keys), self._block.shape[1])
        first, self._waiting = self._waiting, self._waiting + len(keys)
        return [(row, None) for row in self._block[first : self._waiting]]

    def merge(self, other: Self, shift: Float[Tensor, "d"]) -> None:
        """Joins the other's directions."""
        self._join_block()
        other._join_block()
        if other._count:
            self._join(other._rows, other._mean + shift, other._count)

    def remove(self, keys: Sequence[Key]) -> None:
        """Refused: directions of many snapshots do not come apart."""
        raise ValueError('principal columns cannot be removed: use columns="last"')

    def centered(self, mean: Float[Tensor, "d"]) -> Float[Tensor, "k d"]:
        """The directions, scaled so that D Dᵀ / (k - 1) = RᵀR / (n - 1)."""
        self._join_block()
        rows = self._rows
        if len(rows) == 1:  # a second, empty column, since k - 1 divides
            rows = torch.cat([rows, torch.zeros_like(rows)])
        scale: float = (max(len(rows) - 1, 0) / (self._count - 1)) ** 0.5
        return rows * scale

    def within(self) -> None:
        """Not known: directions mix clients."""
        return

    def state(self) -> dict[str, Tensor]:
        """The directions, and the snapshots that have not joined them yet."""
        directions = {"rows": self._rows, "mean": self._mean, "count": torch.tensor(self._count)}
        return {**directions, "block": self._block[: self._waiting]}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the directions of another."""
        self._rows, self._mean, self._count = state["rows"].clone(), state["mean"].clone(), int(state["count"])
        self._waiting = 0
        self.reserve([(0, 0)] * len(state["block"]))
        self._block[: self._waiting] = state["block"]

    def _join_block(self) -> None:
        if self._waiting:
            block = self._block[: self._waiting]
            mean = torch.zeros_like(self._mean)
            for row in block:
                mean.add_(row, alpha=1 / len(block))
            self._join(block.sub_(mean), mean, self._waiting)
            self._waiting = 0

    def _join(self, rows: Float[Tensor, "r d"], mean: Float64[Tensor, "d"], count: int) -> None:
        """Adds `count` snapshots with this mean and scatter rowsᵀ rows around it."""
        total = self._count + count
        step = mean - self._mean
        between = (step * (self._count * count / total) ** 0.5).to(rows.dtype)
        self._rows = _compressed(torch.cat([self._rows, rows, between[None]]), self.rank)
        self._mean += step * (count / total)
        self._count = total


def compression(gram: Float64[Tensor, "r r"], rank: int, eps: float) -> Float64[Tensor, "k r"]:
    """What takes rows with these inner products to at most `rank` rows R, with RᵀR nearest to rowsᵀ rows.

    The first left singular vectors; directions with less than r `eps` of the first one's square are dropped.
    """
    values, vectors = torch.linalg.eigh(gram)
    keep = min(rank, int((values > values[-1] * len(gram) * eps).sum()))
    first: Tensor = vectors[:, len(values) - keep :].flip(1).T
    return first


def _compressed(rows: Float[Tensor, "r d"], rank: int) -> Float[Tensor, "k d"]:
    """At most `rank` rows that keep the most of the scatter of all."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], CHUNK):
        part = rows[:, start : start + CHUNK].double()
        gram += part @ part.T
    kept: Tensor = compression(gram, rank, torch.finfo(rows.dtype).eps).to(rows.dtype) @ rows
    return kept
