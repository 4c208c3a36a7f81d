"""The image data sets known by name: the digits inside the package, and those that `sources` finds or downloads."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from dswag.data import releases
from dswag.data.augmentation import CropAndFlip
from dswag.data.examples import Augmentation, Examples
from dswag.data.formats import read_cifar, read_idx_pair
from dswag.data.releases import Release
from dswag.data.sources import read_files

DATASETS = ("mnist5k", "mnist", "fashion-mnist", "cifar10")
"""Names that `load` takes."""

TEST_SETS = (*DATASETS, "kmnist", "cifar100")
"""Names that `load_test` takes: the last two serve as out-of-distribution inputs and have no training set here."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A training and a test set of images: inputs uint8 [n, channels, h, w], targets int64 [n].

    Attributes:
        name: as listed in `DATASETS`.
        train: carries the augmentation usual for the data set.
        test: has no augmentation.
        class_names: in the order of the targets.
        mean: of each channel over the training set, on the scale where 255 is 1.
        std: likewise.
    """

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, download: bool = True, progress: bool = False
) -> ImageDataset:
    """The data set of that name; hyphens, underscores and case do not matter.

    `mnist5k` comes with the package. The others are looked for in `data_dir`, the folder in DSWAG_DATA_DIR, the cache
    and Debian's /usr/share/datasets; if none has it, it is downloaded from its public source into the cache.

    Raises:
        ValueError: an unknown name.
        DataNotFoundError: files that are in none of these and could not be downloaded, or a missing data folder.
        DataFormatError: a file on disk that differs from the published one.
        CacheNotWritableError: a cache that cannot take the download.
    """
    name = _known(name, DATASETS)
    if name == "mnist5k":
        return _mnist5k()
    entry = _CATALOGUE[name]
    files = entry.train_files + entry.test_files
    contents = read_files(entry.release, files, data_dir, download=download, progress=progress)
    return ImageDataset(
        name,
        Examples(*entry.read([contents[file] for file in entry.train_files], name), augmentation=entry.augmentation),
        Examples(*entry.read([contents[file] for file in entry.test_files], name)),
        entry.class_names,
        entry.mean,
        entry.std,
    )


def load_test(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, download: bool = True, progress: bool = False
) -> Examples:
    """The test set alone, of any name in `TEST_SETS`; the rest is as in `load`."""
    name = _known(name, TEST_SETS)
    if name == "mnist5k":
        return _mnist5k().test
    entry = _CATALOGUE[name]
    contents = read_files(entry.release, entry.test_files, data_dir, download=download, progress=progress)
    return Examples(*entry.read([contents[file] for file in entry.test_files], name))


def _known(name: str, names: Sequence[str]) -> str:
    wanted = name.lower().replace("-", "").replace("_", "")
    found = next((known for known in TEST_SETS if known.replace("-", "") == wanted), None)
    if found is not None and found in names:
        return found
    remedy = f": {found} is a test set alone, use load_test" if found else ""
    raise ValueError(f"data set must be one of {', '.join(names)}, got {name!r}{remedy}")


def _mnist5k() -> ImageDataset:
    with resources.files("dswag.data").joinpath("mnist5k.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    train = Examples(tensors["train_images"].unsqueeze(1), tensors["train_labels"])
    test = Examples(tensors["test_images"].unsqueeze(1), tensors["test_labels"])
    return ImageDataset("mnist5k", train, test, _DIGITS, mean=(0.1313,), std=(0.3086,))


@dataclass(frozen=True)
class _Entry:
    """What `load` knows of a data set; what only a training set needs is empty for those that are test sets alone."""

    release: Release
    read: Callable[[Sequence[bytes], str], tuple[Tensor, Tensor]]
    test_files: tuple[str, ...]
    train_files: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: Augmentation | None = None


def _read_idx(contents: Sequence[bytes], name: str) -> tuple[Tensor, Tensor]:
    images, labels = contents
    return read_idx_pair(images, labels, name)


def _read_cifar10(contents: Sequence[bytes], name: str) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(read_cifar(content, name) for content in contents), strict=True)
    return torch.cat(images), torch.cat(labels)


def _read_cifar100(contents: Sequence[bytes], name: str) -> tuple[Tensor, Tensor]:
    (content,) = contents
    return read_cifar(content, name, label_bytes=2)


_IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_DIGITS = tuple("0123456789")

_CATALOGUE: Mapping[str, _Entry] = MappingProxyType(
    {
        "mnist": _Entry(releases.MNIST, _read_idx, _IDX_TEST, _IDX_TRAIN, _DIGITS, mean=(0.1307,), std=(0.3081,)),
        "fashion-mnist": _Entry(
            releases.FASHION_MNIST,
            _read_idx,
            _IDX_TEST,
            _IDX_TRAIN,
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            mean=(0.2860,),
            std=(0.3530,),
        ),
        "cifar10": _Entry(
            releases.CIFAR10,
            _read_cifar10,
            ("test_batch.bin",),
            _CIFAR10_TRAIN,
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augmentation=CropAndFlip(padding=4),
        ),
        "kmnist": _Entry(releases.KMNIST, _read_idx, _IDX_TEST),
        "cifar100": _Entry(releases.CIFAR100, _read_cifar100, ("test.bin",)),
    }
)
