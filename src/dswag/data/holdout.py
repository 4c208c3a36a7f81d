"""A part of a client's examples that training does not see."""

from typing import Any

import torch
from torch.utils.data import Subset

from dswag.core.randomness import generator_for
from dswag.data.examples import ClientData, Examples, LoaderExamples


def split(data: ClientData, fraction: float, seed: int) -> tuple[ClientData, ClientData]:
    """(All but the held-out examples, the held-out ones): a random `fraction`, at least one and not all, by the seed.

    Raises:
        ValueError: a single example, or a loader that samples in its own way, which cannot be divided.
        TypeError: data of a form of the user's own, which cannot be divided.
    """
    n = data.num_examples
    if n < 2:
        raise ValueError(
            f"holding examples out takes at least 2 of them, got {n}: set holdout=0 or leave the client out"
        )
    order = torch.randperm(n, generator=generator_for(seed), device="cpu")
    size = min(max(1, round(fraction * n)), n - 1)
    return _select(data, order[size:].sort().values), _select(data, order[:size].sort().values)


def _select(data: ClientData, rows: torch.Tensor) -> ClientData:
    if isinstance(data, Examples):
        return data[rows.to(data.inputs.device)]
    if isinstance(data, LoaderExamples) and data.loader is None:
        subset: Subset[Any] = Subset(data.dataset, rows.tolist())
        return LoaderExamples(subset)
    raise TypeError(
        f"examples cannot be held out of {type(data).__name__}: give the client's data as tensors or a Dataset, "
        "or divide them yourself and set holdout=0"
    )
