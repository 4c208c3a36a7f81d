"""The examples of one client, handed out as batches of tensors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, Subset, TensorDataset

from dswag.core.randomness import DrawFrom
from dswag.data.batches import LABELS, without_labels

Batch = tuple[Any, Tensor]
"""Inputs, in the form that the model's forward takes as its only argument, and targets [b, ...]."""

Augmentation = Callable[[Tensor, Generator], Tensor]
"""Maps a batch of inputs to a batch of the same shape, drawing from the generator alone."""


@runtime_checkable
class ClientData(Protocol):
    """What local training needs of a client's data; implement it for data in a form of your own."""

    @property
    def num_examples(self) -> int:
        """The number of examples that one pass of `batches` yields."""

    def batches(self, batch_size: int, *, generator: Generator | None = None, augment: bool = False) -> Iterator[Batch]:
        """One pass over the examples: shuffled by `generator`, in their own order without one."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples held as tensors: whole batches are indexed at once, and keep their dtype.

    Raises:
        ValueError: lengths that differ, no example at all, or inputs or targets that are NaN or infinite.
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"inputs and targets must pair up, got {len(self.inputs)} inputs, {len(self.targets)} targets"
            )
        if len(self.inputs) == 0:
            raise ValueError("examples are empty: give every client at least one example, or leave the client out")
        for what, values in (("inputs", self.inputs), ("targets", self.targets)):
            if values.is_floating_point() and not (finite := torch.isfinite(values)).all():
                row = int((~finite).reshape(len(finite), -1).any(1).nonzero()[0])
                raise ValueError(
                    f"{what} must be finite, got NaN or infinity in example {row}: clean or drop such examples"
                )
        if not self.targets.is_floating_point() and self.targets.dtype != torch.int64:
            object.__setattr__(self, "targets", self.targets.long())

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: Tensor | slice | Sequence[int]) -> "Examples":
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    @property
    def num_examples(self) -> int:
        """The number of examples, n."""
        return len(self)

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on a device, so that batches for a model there need not be copied."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def batches(self, batch_size: int, *, generator: Generator | None = None, augment: bool = False) -> Iterator[Batch]:
        """One pass over the examples, in batches that differ in size by at most one: no lone example is left over.

        Augmentation draws from the generator after the shuffle; without a generator there is none.

        Raises:
            ValueError: a batch size below 1.
        """
        _check_batch_size(batch_size)
        order = _order(len(self), generator)
        for rows in order.to(self.inputs.device).tensor_split(math.ceil(len(self) / batch_size)):
            inputs = self.inputs.index_select(0, rows)
            if augment and self.augmentation is not None and generator is not None:
                inputs = self.augmentation(inputs, generator)
            yield inputs, self.targets.index_select(0, rows)


@dataclass(frozen=True, eq=False)
class LoaderExamples:
    """Examples that a `Dataset` or a `DataLoader` yields, in the batches that a pair of tensors would give.

    They are at most as large as the loader's, if it sets a size, and otherwise as the config's; and they differ in size
    by at most one, unless the loader drops the last, smaller one. A batch is (inputs, targets), or a mapping with
    `labels` in it.

    The order, and random numbers that the data set itself draws with PyTorch, come from the task's generator instead of
    the global one, so that a run can be repeated. Worker processes are seeded from it too, each by its number, so that
    what a data set draws, but nothing else, depends on `num_workers`. A loader's own sampler decides which examples
    come, and in which order, and a batch sampler which batches: seeding them is up to you.

    Raises:
        TypeError: a data set without a length, or batches that are not (inputs, targets).
        ValueError: no example at all, or none left after the loader has dropped its last, smaller batch.
    """

    dataset: Dataset[Any]
    loader: DataLoader[Any] | None = None

    def __post_init__(self) -> None:
        if self.num_examples:
            return
        if self.loader is not None and self.loader.drop_last and len(self.dataset):  # type: ignore[arg-type]
            raise ValueError(
                f"the loader drops all of its {len(self.loader.sampler)} examples, "  # type: ignore[arg-type]
                f"fewer than its batch_size of {self.loader.batch_size}, as it has drop_last: leave that out"
            )
        raise ValueError("examples are empty: give every client at least one example, or leave the client out")

    @property
    def num_examples(self) -> int:
        """The number of examples in one pass: a sampler or `drop_last` may leave some of the data set out."""
        loader = self.loader
        try:
            if loader is None or loader.batch_size is None:
                return len(self.dataset)  # type: ignore[arg-type]
            sampled = len(loader.sampler)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"{type(self.dataset).__name__} has no length, and local epochs need to know where they end: give "
                "dswag.data.streams.Stream(..., steps_per_epoch=100)"
            ) from None
        return sampled - sampled % loader.batch_size if loader.drop_last else sampled

    def batches(self, batch_size: int, *, generator: Generator | None = None, augment: bool = False) -> Iterator[Batch]:
        """One pass over the data set, through the user's loader if there is one."""
        seeds = _apart(generator)
        for batch in _drawing_from(seeds, self._loader(batch_size, generator, seeds)):
            yield as_pair(batch)

    def _loader(self, batch_size: int, generator: Generator | None, seeds: Generator) -> DataLoader[Any]:
        given = self.loader
        if given is None:
            _check_batch_size(batch_size)
            batches = _even(_order(self.num_examples, generator), batch_size)
            return DataLoader(self.dataset, batch_sampler=batches, generator=seeds)
        if given.batch_size is None:
            return given
        if _samples_plainly(given):
            order = _order(len(self.dataset), generator)  # type: ignore[arg-type]
        else:
            order = torch.tensor(list(islice(given.sampler, len(given.sampler))))  # type: ignore[arg-type]
        whole = torch.split(order[: self.num_examples], given.batch_size)
        return DataLoader(
            self.dataset,
            batch_sampler=[rows.tolist() for rows in whole] if given.drop_last else _even(order, given.batch_size),
            generator=seeds,
            num_workers=given.num_workers,
            collate_fn=given.collate_fn,
            pin_memory=given.pin_memory,
            timeout=given.timeout,
            worker_init_fn=given.worker_init_fn,
            multiprocessing_context=given.multiprocessing_context,
            prefetch_factor=given.prefetch_factor,
        )


def as_pair(batch: Any) -> Batch:
    """(Inputs, targets) of a batch.

    Raises:
        TypeError: it is no pair, and no mapping with labels.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in LABELS if name in batch), None)
        if name is None:
            raise TypeError(f"a batch that is a mapping must hold its targets as 'labels', got {list(batch)}")
        return without_labels(batch), batch[name]
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise TypeError(
            f"a batch must be (inputs, targets), got {_described(batch)}: wrap your data set so that it gives "
            "pairs; several inputs are one that is a tuple or a dictionary"
        )
    return batch[0], batch[1]


def _order(n: int, generator: Generator | None) -> Tensor:
    """The numbers of n examples, shuffled by the generator; in their order without one."""
    return torch.arange(n) if generator is None else torch.randperm(n, generator=generator, device=generator.device)


def _even(order: Tensor, batch_size: int) -> list[list[int]]:
    """Batches of the examples with these numbers, which differ in size by at most one: none is left over alone."""
    return [rows.tolist() for rows in order.tensor_split(math.ceil(len(order) / batch_size))]


def _apart(generator: Generator | None) -> Generator:
    """A generator for what data sets and workers draw, seeded by one that it leaves as it is.

    Without one of its own a loader draws a number from the global generator, even if it shuffles nothing.
    """
    if generator is None:
        return Generator()
    copy = Generator(generator.device)
    copy.set_state(generator.get_state())
    return Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=copy, device=copy.device)))


def _drawing_from(generator: Generator, loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches, each fetched with the random operations of its transforms drawing from the generator."""
    if loader.num_workers:
        yield from loader
        return
    batches = iter(loader)
    while True:
        with DrawFrom(generator):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def client_data(data: Any) -> ClientData:
    """The given data in the form that local training takes.

    Takes an object with `num_examples` and `batches`, a pair of tensors (inputs [n, ...], targets [n, ...]), a
    `Dataset` of (input, target) pairs, a `DataLoader` over one, or anything else with a length and examples by number,
    such as a data set of Hugging Face.

    Raises:
        TypeError: anything else.
        ValueError: examples that are empty, do not pair up, or are NaN or infinite.
    """
    if isinstance(data, ClientData):
        return data
    if isinstance(data, DataLoader):
        return LoaderExamples(data.dataset, data)
    if isinstance(data, Subset) and isinstance(data.dataset, TensorDataset) and len(data.dataset.tensors) == 2:
        inputs, targets = data.dataset.tensors
        rows = torch.as_tensor(data.indices, dtype=torch.int64)
        return Examples(inputs[rows], targets[rows])
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return Examples(*data.tensors)
    if isinstance(data, Dataset):
        return LoaderExamples(data)
    if isinstance(data, tuple | list) and len(data) == 2:
        return Examples(_tensor("inputs", data[0]), _tensor("targets", data[1]))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, _NO_DATA_SETS):
        return LoaderExamples(data)
    raise TypeError(
        f"a client's data must be a pair of tensors (inputs, targets), a Dataset or a DataLoader, "
        f"got {_described(data)}: give a list of these, one for each client"
    )


_NO_DATA_SETS = (str, bytes, Tensor, np.ndarray, tuple, list, Mapping)


def _tensor(what: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what} must be one tensor or array, got {_described(values)}: for any other form give a Dataset of "
            "(input, target) pairs"
        ) from error


def _described(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _samples_plainly(loader: DataLoader[Any]) -> bool:
    """Whether one pass of the loader is the data set, each example once, in its order or shuffled."""
    sampler = loader.sampler
    if loader.batch_size is None or len(sampler) != len(loader.dataset):  # type: ignore[arg-type]
        return False
    return isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
