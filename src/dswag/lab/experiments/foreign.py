"""Inputs of the same kind as the training data that show something else."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxtyping import UInt8
from torch import Tensor

from dswag.data import datasets
from dswag.data.datasets import ImageDataset
from dswag.data.sources import DataNotFoundError

FOREIGN: Mapping[str, str] = MappingProxyType({"mnist": "kmnist", "fashion-mnist": "kmnist", "cifar10": "cifar100"})
"""The test set whose inputs are out of distribution, by data set; mnist5k's are its own with their quarters swapped."""


def name(dataset: str) -> str:
    """What the foreign inputs of a data set are, in words."""
    return FOREIGN.get(dataset, swapped_name(dataset))


def swapped_name(dataset: str) -> str:
    """What a data set's own inputs with their quarters swapped are called."""
    return f"{dataset} with its quarters swapped"


def inputs(dataset: ImageDataset, data_dir: str | None, *, progress: bool = False) -> UInt8[Tensor, "n channels h w"]:
    """The foreign inputs of a data set.

    Raises:
        DataNotFoundError: from `dswag.data.datasets.load_test`.
    """
    if dataset.name in FOREIGN:
        return datasets.load_test(FOREIGN[dataset.name], data_dir, progress=progress).inputs
    return swapped(dataset)


def at_hand(dataset: ImageDataset, data_dir: str | None) -> tuple[str, UInt8[Tensor, "n channels h w"]]:
    """Their name, and foreign inputs that need no download: where the others are not on this machine, swapped ones."""
    try:
        if dataset.name in FOREIGN:
            return name(dataset.name), datasets.load_test(FOREIGN[dataset.name], data_dir, download=False).inputs
    except DataNotFoundError:
        pass
    return swapped_name(dataset.name), swapped(dataset)


def swapped(dataset: ImageDataset) -> UInt8[Tensor, "n channels h w"]:
    """The test inputs with their quarters swapped: what is in the middle moves into the corners."""
    height, width = dataset.test.inputs.shape[-2:]
    return dataset.test.inputs.roll((height // 2, width // 2), (-2, -1))
