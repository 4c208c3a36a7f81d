"""A client's data that have no end, or none that is known."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Generator
from torch.utils.data import DataLoader, Dataset

from dswag.data.examples import Batch, as_pair


@dataclass(eq=False)
class Stream:
    """Data that come as a stream: an epoch is the next so many batches of it, which then begins anew if it has ended.

    Every pass takes its batches from where the one before stopped, whatever it is for. So the order of the data, and
    what a resumed run gets to see, are those of the stream, and no seed decides on them.

    Args:
        source: an `IterableDataset`, a `DataLoader`, or any iterable of (inputs, targets).
        steps_per_epoch: batches in a pass.
        batch_size: of a data set; a loader and other iterables yield batches.
    """

    source: Iterable[Any]
    steps_per_epoch: int
    batch_size: int = 50
    _rest: Iterator[Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps_per_epoch and batch_size must be at least 1, got {self.steps_per_epoch} and {self.batch_size}"
            )
        if isinstance(self.source, Dataset):
            self.source = DataLoader(self.source, self.batch_size, generator=Generator())

    @property
    def num_examples(self) -> int:
        """Examples of a pass, if all batches are full."""
        size = getattr(self.source, "batch_size", None) or self.batch_size
        return self.steps_per_epoch * int(size)

    def batches(self, batch_size: int, *, generator: Generator | None = None, augment: bool = False) -> Iterator[Batch]:
        """The next batches of the stream, as it yields them.

        Raises:
            ValueError: the stream yields nothing.
        """
        for _ in range(self.steps_per_epoch):
            yield as_pair(self._next())

    def _next(self) -> Any:
        for _ in range(2):
            if self._rest is None:
                self._rest = iter(self.source)
            for batch in self._rest:
                return batch
            self._rest = None
        raise ValueError("the stream yields no batch: give one that can be iterated anew")
