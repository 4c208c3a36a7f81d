"""What a model may be given to predict: batches of inputs, however they come."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

AHEAD = 8
"""Batches of an iterable that are held at a time."""


def inputs_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The inputs of each batch: the first element of a tuple or list such as (inputs, targets), or the batch itself."""
    return (batch[0] if isinstance(batch, tuple | list) else batch for batch in batches)


def groups(inputs: Tensor | Iterable[Any], batch_size: int) -> Iterator[Sequence[Any]]:
    """Batches of inputs, AHEAD at a time; all at once if they are in memory already.

    Args:
        inputs: a tensor or NumPy array [n, ...], or a Dataset, to be cut into batches; or an iterable of batches.
        batch_size: of what is cut.

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
    if isinstance(inputs, Tensor):
        found = iter([torch.split(inputs, batch_size)] if len(inputs) else [])
    else:
        batches = inputs_of(inputs)
        found = iter(lambda: tuple(islice(batches, AHEAD)), ())
    empty = True
    for group in found:
        empty = False
        yield group
        del group  # before the next is read
    if empty:
        raise ValueError("there are no inputs to predict")
