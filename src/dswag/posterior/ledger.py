"""Which snapshots were taken in, so that nothing else is taken out again."""

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

Run = tuple[int, int, int]
"""Indices from the first number up to, and without, the second, with the third's number of snapshots each."""


class Ledger:
    """How often each index was added, with how many snapshots; changed in place.

    Neighboring indices are one run: those of a million clients that come in order take as much room as one.
    """

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def add(self, index: int, snapshots: int) -> None:
        """Notes one more."""
        start, stop, of_each = self._runs[-1] if self._runs else (index, index, snapshots)
        if (stop, of_each) == (index, snapshots):
            self._runs[-1:] = [(start, index + 1, snapshots)]
        else:
            self._runs.append((index, index + 1, snapshots))

    def times(self, index: int, snapshots: int | None = None) -> int:
        """How often the index was added, with so many snapshots or with any number of them."""
        return sum(start <= index < stop and snapshots in (None, of_each) for start, stop, of_each in self._runs)

    def remove(self, index: int, snapshots: int) -> None:
        """Forgets one of those that were added."""
        number, (start, stop, _) = next(
            (number, run) for number, run in enumerate(self._runs) if run[0] <= index < run[1] and run[2] == snapshots
        )
        rest = ((start, index, snapshots), (index + 1, stop, snapshots))
        self._runs[number : number + 1] = [run for run in rest if run[0] < run[1]]

    def merge(self, other: Self) -> None:
        """Takes in another's; what is in both counts twice."""
        self._runs = _joined([*self._runs, *other._runs])

    def state(self) -> Tensor:
        """The runs [r, 3]."""
        return torch.tensor(_joined(self._runs), dtype=torch.int64).view(-1, 3)

    def load(self, state: Tensor) -> None:
        """Takes on another's runs."""
        self._runs = [(start, stop, snapshots) for start, stop, snapshots in state.tolist()]


def _joined(runs: Iterable[Run]) -> list[Run]:
    """The same, with neighbors in one run."""
    joined: list[Run] = []
    for start, stop, snapshots in sorted(runs, key=lambda run: (run[2], *run)):
        if joined and joined[-1][1:] == (start, snapshots):
            joined[-1] = (joined[-1][0], stop, snapshots)
        else:
            joined.append((start, stop, snapshots))
    return joined
