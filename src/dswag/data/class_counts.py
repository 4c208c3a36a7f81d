"""How many examples of each class each client has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class ClassCounts:
    """A table of clients and classes.

    Raises:
        ValueError: no client, a client without examples, or one without a count for every class.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """Of each client, in the order of `class_names`."""

    def __post_init__(self) -> None:
        if not self.counts:
            raise ValueError("counts must be of at least one client, got none")
        for client, row in enumerate(self.counts):
            if len(row) != len(self.class_names) or min(row, default=0) < 0 or not sum(row):
                raise ValueError(
                    f"client {client} must have a count for each of {len(self.class_names)} classes, "
                    f"0 or more and not all 0, got {list(row)}"
                )

    @classmethod
    def of(cls, parts: Sequence[Int64[Tensor, "_"]], targets: Int64[Tensor, "n"], class_names: Sequence[str]) -> Self:
        """The counts of a partition, with targets in [0, number of classes)."""
        counts = (targets[part].bincount(minlength=len(class_names)).tolist() for part in parts)
        return cls(tuple(class_names), tuple(map(tuple, counts)))
