"""Data sets by name: the digits of the package, small files in place of the real ones, the real ones where present."""

import gzip
import hashlib
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch

from dswag.data import datasets
from dswag.data.augmentation import CropAndFlip
from dswag.data.datasets import DATASETS, TEST_SETS, load, load_test
from dswag.data.sources import DataNotFoundError


def load_if_present(loader, name):
    try:
        return loader(name, download=False)
    except DataNotFoundError:
        pytest.skip(f"{name} is not on this machine: name its folder by DSWAG_DATA_DIR")


def labeled_images(examples):
    images, labels = examples.inputs.numpy(), examples.targets.tolist()
    return {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}


def statistics(images):
    """Mean and standard deviation of each channel on [0, 1], from exact integer histograms."""
    values = np.arange(256) / 255
    shares = [
        torch.bincount(channel.flatten(), minlength=256).numpy() / channel.numel() for channel in images.unbind(1)
    ]
    means = [float(share @ values) for share in shares]
    return means, [float(np.sqrt(share @ (values - mean) ** 2)) for share, mean in zip(shares, means, strict=True)]


@pytest.fixture
def tiny_catalogue(cache, idx_files, cifar_files, packed, make_tar_gz, make_release, start_mirror, monkeypatch):
    """The catalogue's own entries over small files that a local server hands out."""
    mirror = start_mirror(packed | {"tiny.tar.gz": make_tar_gz(cifar_files)})
    idx, cifar = make_release(idx_files, mirror.url), make_release(cifar_files, mirror.url, archive="tiny.tar.gz")
    entries = {
        name: replace(datasets._CATALOGUE[name], release=cifar if name == "cifar10" else idx)
        for name in ("mnist", "fashion-mnist", "kmnist", "cifar10")
    }
    monkeypatch.setattr(datasets, "_CATALOGUE", MappingProxyType(entries))


def test_mnist5k_has_400_and_100_digits_of_each_class():
    digits = load("mnist5k")
    assert digits.train.inputs.shape == (4000, 1, 28, 28)
    assert digits.test.inputs.shape == (1000, 1, 28, 28)
    assert digits.train.inputs.dtype == digits.test.inputs.dtype == torch.uint8
    assert digits.train.targets.bincount().tolist() == [400] * 10
    assert digits.test.targets.bincount().tolist() == [100] * 10


def test_mnist5k_is_shuffled():
    """In 4,000 shuffled labels about 10 % follow one of their own kind; sorted by class it would be nearly all."""
    targets = load("mnist5k").train.targets
    assert (targets[1:] == targets[:-1]).double().mean() < 0.15


def test_mnist5k_is_golden():
    """Regenerate with tools/make_mnist5k.py; a change breaks every measured result."""
    digits = load("mnist5k")
    digest = hashlib.sha256()
    for part in (digits.train, digits.test):
        digest.update(part.inputs.numpy().tobytes())
        digest.update(part.targets.byte().numpy().tobytes())
    assert digest.hexdigest() == "693f0d7ddbac067fe4e73f4fba64246898652bedcfb19c5bfa7bc81c15b83dc9"


def test_mnist5k_digits_are_different_rows_of_the_training_set_of_mnist():
    mnist, digits = load_if_present(load, "mnist").train, load("mnist5k")
    ours = labeled_images(digits.train) | labeled_images(digits.test)
    assert len(ours) == 5000
    assert ours <= labeled_images(mnist)


@pytest.mark.parametrize("spelling", ["Fashion-MNIST", "fashion_mnist", "FashionMNIST", "fashion-mnist"])
def test_hyphens_underscores_and_case_do_not_matter(spelling, tiny_catalogue):
    assert load(spelling).name == "fashion-mnist"


@pytest.mark.parametrize(("loader", "name", "names"), [(load, "minst", DATASETS), (load_test, "svhn", TEST_SETS)])
def test_an_unknown_name_lists_the_known_ones(loader, name, names):
    with pytest.raises(ValueError, match=f"data set must be one of {', '.join(names)}, got '{name}'"):
        loader(name)


def test_test_sets_without_a_training_set_point_to_load_test():
    with pytest.raises(ValueError, match="got 'KMNIST': kmnist is a test set alone, use load_test"):
        load("KMNIST")


def test_idx_sets_are_bytes_with_one_channel(tiny_catalogue, idx_files):
    mnist = load("mnist")
    assert (mnist.train.inputs.shape, mnist.train.inputs.dtype) == ((20, 1, 6, 5), torch.uint8)
    assert mnist.train.inputs.numpy().tobytes() == idx_files["train-images-idx3-ubyte"][16:]
    assert (mnist.test.targets.tolist(), mnist.test.targets.dtype) == (
        list(idx_files["t10k-labels-idx1-ubyte"][8:]),
        torch.int64,
    )
    assert mnist.train.augmentation is None


def test_cifar10_joins_its_batches_in_order_and_augments_training_only(tiny_catalogue, cifar_files):
    cifar = load("cifar-10")
    labels = [cifar_files[f"data_batch_{number}.bin"][3073 * row] for number in range(1, 6) for row in range(4)]
    assert cifar.train.targets.tolist() == labels
    assert cifar.test.inputs.shape == (4, 3, 32, 32)
    assert cifar.train.augmentation == CropAndFlip(padding=4)
    assert cifar.test.augmentation is None


def test_the_test_set_alone_needs_no_other_file(tiny_catalogue, cache):
    assert load_test("kmnist").inputs.shape == (10, 1, 6, 5)
    assert sorted(path.name for path in (cache / "tiny").iterdir()) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]


def test_cifar100_gives_the_fine_labels(cache, tmp_path, make_release, monkeypatch):
    content = bytes([19, 99]) + bytes(3072) + bytes([0, 4]) + bytes(3072)
    entry = replace(datasets._CATALOGUE["cifar100"], release=make_release({"test.bin": content}))
    monkeypatch.setattr(datasets, "_CATALOGUE", {"cifar100": entry})
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/test.bin.gz").write_bytes(gzip.compress(content))
    assert load_test("CIFAR-100", tmp_path).targets.tolist() == [99, 4]


@pytest.mark.parametrize("name", DATASETS)
def test_mean_and_std_are_those_of_the_training_set(name):
    """To four places, as they are written down."""
    dataset = load_if_present(load, name)
    means, stds = statistics(dataset.train.inputs)
    assert dataset.mean == pytest.approx(means, abs=5.1e-5)
    assert dataset.std == pytest.approx(stds, abs=5.1e-5)
    assert len(dataset.class_names) == int(dataset.train.targets.max()) + 1


@pytest.mark.parametrize(("name", "classes"), [(name, 100 if name == "cifar100" else 10) for name in TEST_SETS])
def test_published_test_sets_hold_every_class(name, classes):
    counts = load_if_present(load_test, name).targets.bincount()
    assert int(counts.sum()) == (1000 if name == "mnist5k" else 10_000)
    assert len(counts) == classes
    assert counts.min() > 0
