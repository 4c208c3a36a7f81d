"""Batches in whatever form they come: what is input in them, what the labels, and how many are held at a time."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

AHEAD = 8
"""Batches of an iterable that are held at a time."""

LABELS = ("labels", "label")
"""Where a batch that is a mapping holds its targets, as Hugging Face's data sets and collators name them."""


def without_labels(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of a batch that is a mapping."""
    if not any(name in batch for name in LABELS):
        return batch
    if not isinstance(batch, dict | UserDict):
        return {name: part for name, part in batch.items() if name not in LABELS}
    inputs = copy.copy(batch)
    for name in LABELS:
        inputs.pop(name, None)
    return inputs


def inputs_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The inputs of each batch: the first element of a tuple or list such as (inputs, targets), or the batch itself.

    A tuple with names, such as a packed sequence, is inputs; a mapping is so without its labels.
    """
    for batch in batches:
        if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
            yield batch[0]
        else:
            yield without_labels(batch) if isinstance(batch, Mapping) else batch


def groups(
    inputs: Tensor | Iterable[Any], batch_size: int, room: Callable[[Any], int] = lambda _: AHEAD
) -> Iterator[Sequence[Any]]:
    """Batches of inputs, AHEAD at a time; of a tensor, as many as there is room for.

    Args:
        inputs: a tensor or NumPy array [n, ...], or a Dataset, to be cut into batches; or an iterable of batches.
        batch_size: of what is cut.
        room: says how many batches like the given one, the first of a tensor with more than AHEAD, may be held.

    Raises:
        TypeError: a dictionary or a text.
        ValueError: no inputs.
    """
    if isinstance(inputs, np.ndarray):
        inputs = torch.as_tensor(inputs)
    if isinstance(inputs, Dataset):
        inputs = DataLoader(inputs, batch_size, generator=Generator())  # or it would draw from the global one
    if isinstance(inputs, Mapping | str):
        raise TypeError(
            f"inputs must be a tensor, a data set or an iterable of batches, got {type(inputs).__name__}: "
            "put what is one batch into a list"
        )
    ahead = AHEAD
    if isinstance(inputs, Tensor):
        batches: Iterator[Any] = iter(torch.split(inputs, batch_size) if len(inputs) else ())
        if len(inputs) > AHEAD * batch_size:
            ahead = max(1, room(inputs[:batch_size]))
    else:
        batches = inputs_of(inputs)
    empty = True
    while group := tuple(islice(batches, ahead)):
        empty = False
        yield group
        del group  # before the next is read
    if empty:
        raise ValueError("there are no inputs to predict")
