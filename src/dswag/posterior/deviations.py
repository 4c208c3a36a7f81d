"""The deviation columns D of the low-rank part (Algorithm 1, lines 28-30): which are kept, and around what."""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.posterior.welford import Rows

CHUNK = 1 << 16
"""Elements of θ handled at a time, so that what is brought to float64 is never all of a row."""

FEW = 32
"""Rows that there is room for at first; more as they come, since a rank may be far above the snapshots."""

MOST = 10_000
"""The largest rank: no machine has room for so many copies of θ, so it is a slip rather than a wish."""


def check_rank(rank: int) -> None:
    """Raises ValueError for a number of columns that cannot be."""
    if rank < 0 or rank == 1:
        raise ValueError(
            f"rank must be 0 or at least 2, got {rank}: the covariance divides by the number of columns minus one"
        )
    if rank > MOST:
        raise ValueError(f"rank must be at most {MOST}, got {rank}: every column takes as much memory as θ")


Key = tuple[int, int]
"""(index of the task, number of the snapshot): what orders columns."""


class Columns(Protocol):
    """At most K columns [k, d] of snapshots, kept as differences to an anchor; changed in place."""

    def reserve(self, keys: Sequence[Key]) -> Rows:
        """Where the caller puts the differences of a client's snapshots, before anything else happens here."""

    def merge(self, other: Self, shift: Float[Tensor, "d"]) -> None:
        """Takes in another's, whose differences are to an anchor that lies `shift` from this one's."""

    def remove(self, keys: Sequence[Key], differences: Float[Tensor, "s d"], rounding: float) -> None:
        """Takes out a client's, whose differences to the anchor are within `rounding` of these, by their norm.

        Raises ValueError where that is not possible any more; nothing changes then.
        """

    def centered(self, mean: Float[Tensor, "d"], *, take: bool = False) -> Float[Tensor, "k d"]:
        """Columns D, by which D Dᵀ / (k - 1) is the low-rank covariance, centered on `mean` [d].

        New ones; or, with `take`, in the memory of those here, which are none of this object's any more.
        """

    def within(self, *, take: bool = False) -> Float[Tensor, "k d"] | None:
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
        self._differences = like.new_empty(min(rank, FEW), len(like))
        self._within: Tensor | None = None  # allocated once a client has several snapshots
        self._displaced = False

    def reserve(self, keys: Sequence[Key]) -> Rows:
        """Slots for those that belong to the last K."""
        slots = [self._slot(key) for key in keys]
        if len(keys) > 1 and self._within is None and not self.running:
            self._within = torch.zeros_like(self._differences)
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

    def remove(self, keys: Sequence[Key], differences: Float[Tensor, "s d"], rounding: float) -> None:
        """Frees the columns' slots; refused once others made room for them."""
        if self.running:
            raise ValueError('columns centered on the running mean cannot be removed: use centering="final"')
        held = [(slot, keys.index(key)) for slot, key in enumerate(self._keys) if key in keys]
        if held and self._displaced:
            raise ValueError(
                f"the columns of {keys[0][0]} cannot be removed: earlier columns made room for them and are gone; "
                "use rank=0, or a rank of at least the number of snapshots"
            )
        for slot, number in held:
            if float(torch.linalg.vector_norm(self._differences[slot] - differences[number])) > rounding:
                raise ValueError(
                    f"nothing can be removed that was not added: snapshot {number} of {keys[0][0]} was another θ"
                )
        kept = [slot for slot in range(len(self._keys)) if slot not in dict(held)]
        self._differences[: len(kept)] = self._differences[kept]
        if self._within is not None:
            self._within[: len(kept)] = self._within[kept]
        self._keys = [self._keys[slot] for slot in kept]

    def centered(self, mean: Float[Tensor, "d"], *, take: bool = False) -> Float[Tensor, "k d"]:
        """The columns in the order of their keys."""
        return self._ordered(self._differences, None if self.running else mean, take)

    def within(self, *, take: bool = False) -> Float[Tensor, "k d"] | None:
        """Zero for the column of a client's only snapshot; None where every client had but one, or if running."""
        return None if self._within is None or self.running else self._ordered(self._within, None, take)

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
        self._differences = _with_room(self._differences, 0, k, self.rank)
        self._differences[:k] = state["differences [d]"]
        if "within [d]" in state:
            self._within = torch.zeros_like(self._differences)
            self._within[:k] = state["within [d]"]
        self._displaced = bool(state["displaced"])

    def _ordered(self, rows: Float[Tensor, "r d"], mean: Tensor | None, take: bool) -> Float[Tensor, "k d"]:
        """The rows in use in the order of their keys, less the mean; part by part, so that no copy is in float64."""
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        outcome = rows[: len(order)] if take else rows.new_empty(len(order), rows.shape[1])
        for start in range(0, rows.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            outcome[:, part] = rows[order, part] if mean is None else rows[order, part].sub(mean[part])
        return outcome

    def _slot(self, key: Key) -> int | None:
        """A free slot, or that of the lowest key if this one is higher (line 28)."""
        if len(self._keys) < self.rank:
            slot = len(self._keys)
            self._differences = _with_room(self._differences, slot, slot + 1, self.rank)
            if self._within is not None:
                self._within = _with_room(self._within, slot, slot + 1, self.rank)
            self._keys.append(key)
            return slot
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
        self._block = like.new_empty(min(rank, FEW), len(like))  # snapshots that have not joined yet
        self._waiting = 0
        self._rows = like.new_empty(0, len(like))  # R, whose RᵀR is the scatter around the mean
        self._mean = torch.zeros_like(like, dtype=torch.float64)
        self._count = 0

    def reserve(self, keys: Sequence[Key]) -> Rows:
        """A row for every snapshot; those that came before join the directions first where both are more than K."""
        if self._waiting + len(keys) > self.rank:
            self._join_block()
        first, self._waiting = self._waiting, self._waiting + len(keys)
        self._block = _with_room(self._block, first, self._waiting, max(self.rank, self._waiting))
        return [(row, None) for row in self._block[first : self._waiting]]

    def merge(self, other: Self, shift: Float[Tensor, "d"]) -> None:
        """Joins the other's directions."""
        self._join_block()
        rows, mean, count = other._all_joined()
        if count:
            self._rows, self._mean, self._count = self._joined(rows, mean + shift, count)

    def remove(self, keys: Sequence[Key], differences: Float[Tensor, "s d"], rounding: float) -> None:
        """Refused: directions of many snapshots do not come apart."""
        raise ValueError('principal columns cannot be removed: use columns="last"')

    def centered(self, mean: Float[Tensor, "d"], *, take: bool = False) -> Float[Tensor, "k d"]:
        """The directions, scaled so that D Dᵀ / (k - 1) = RᵀR / (n - 1)."""
        rows, _, count = self._all_joined()
        if len(rows) == 1:  # a second, empty column, since k - 1 divides
            rows = torch.cat([rows, torch.zeros_like(rows)])
        scale: float = (max(len(rows) - 1, 0) / (count - 1)) ** 0.5
        return rows * scale

    def within(self, *, take: bool = False) -> None:
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
        self._rows, self._mean, self._count = self._all_joined()
        self._waiting = 0

    def _all_joined(self) -> tuple[Float[Tensor, "k d"], Float64[Tensor, "d"], int]:
        """What there is once the snapshots that wait have joined; they go on waiting here."""
        if not self._waiting:
            return self._rows, self._mean, self._count
        block = self._block[: self._waiting]
        mean = torch.zeros_like(self._mean)
        for row in block:
            mean.add_(row, alpha=1 / len(block))
        return self._joined(_centered(block, mean), mean, len(block))

    def _joined(
        self, rows: Float[Tensor, "r d"], mean: Float64[Tensor, "d"], count: int
    ) -> tuple[Float[Tensor, "k d"], Float64[Tensor, "d"], int]:
        """With `count` more snapshots that have this mean, and the scatter rowsᵀ rows around it."""
        total = self._count + count
        step = mean - self._mean
        between = (step * (self._count * count / total) ** 0.5).to(rows.dtype)
        joined = _compressed((self._rows, rows, between[None]), self.rank)
        return joined, self._mean + step * (count / total), total


def compression(gram: Float64[Tensor, "r r"], rank: int, eps: float) -> Float64[Tensor, "k r"]:
    """What takes rows with these inner products to at most `rank` rows R, with RᵀR nearest to rowsᵀ rows.

    The first left singular vectors; directions with less than r `eps` of the first one's square are dropped.
    """
    values, vectors = torch.linalg.eigh(gram)
    keep = min(rank, int((values > values[-1] * len(gram) * eps).sum()))
    first: Tensor = vectors[:, len(values) - keep :].flip(1).T
    return first


def _compressed(groups: Sequence[Float[Tensor, "_ d"]], rank: int) -> Float[Tensor, "k d"]:
    """At most `rank` rows that keep the most of the scatter of all; the groups are never put together as a whole."""
    number, d, like = sum(map(len, groups)), groups[0].shape[1], groups[0]
    parts = [slice(start, start + CHUNK) for start in range(0, d, CHUNK)]
    gram = torch.zeros(number, number, dtype=torch.float64, device=like.device)
    for part in parts:
        rows = torch.cat([group[:, part] for group in groups]).double()
        gram += rows @ rows.T
    directions = compression(gram, rank, torch.finfo(like.dtype).eps).to(like.dtype)
    kept = like.new_empty(len(directions), d)
    for part in parts:
        kept[:, part] = directions @ torch.cat([group[:, part] for group in groups])
    return kept


def _centered(rows: Float[Tensor, "r d"], mean: Float64[Tensor, "d"]) -> Float[Tensor, "r d"]:
    """The rows less the mean, rounded once."""
    outcome = torch.empty_like(rows)
    for start in range(0, rows.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        outcome[:, part] = rows[:, part] - mean[part]
    return outcome


def _with_room(rows: Float[Tensor, "r d"], used: int, needed: int, most: int) -> Float[Tensor, "m d"]:
    """The rows, or where they are fewer than needed, twice as many, at most `most`, that begin with those in use."""
    if needed <= len(rows):
        return rows
    more = rows.new_empty(min(most, max(needed, 2 * len(rows))), rows.shape[1])
    more[:used] = rows[:used]
    return more
