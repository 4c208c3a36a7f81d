# ruff: noqa: T201
"""Writes a fingerprint of normal numbers and of draws, each made in the ways that there are: run by test_normals.py.

python tests/core/draws_of_every_processor.py
"""

import hashlib
import json

import numpy as np
import torch

from dswag import GaussianPosterior
from dswag.core import fast, normals
from dswag.posterior.combining import MixturePosterior

D, K = 40_003, 5


def posterior(dtype: torch.dtype) -> GaussianPosterior:
    """Numbers that are made by division alone, with scales that take both parts of the covariance apart."""
    ramp = (torch.arange(D) / D).to(dtype)
    columns = torch.stack([(torch.arange(D) * (j + 3) % 101 - 50) / 101 for j in range(K)]).to(dtype)
    parts = {"variance_within": ramp / 3, "deviations_within": columns / 5, "within_scale": 0.3, "between_scale": 1.7}
    return GaussianPosterior(mean=ramp - 1, variance=ramp, deviations=columns, count=9, **parts)


def digest(*arrays: np.ndarray) -> str:
    """Of the bits."""
    return hashlib.blake2b(
        b"".join(np.ascontiguousarray(array).tobytes() for array in arrays), digest_size=16
    ).hexdigest()


def main() -> None:
    """Prints the fingerprints by name."""
    found = {}
    for name, loops in (("numpy", normals), ("compiled", fast._compiled())):
        numbers, sums = np.empty(D, np.float32), (np.arange(D) / D).astype(np.float32)
        loops.fill(numbers, normals.key_of(1, 2, 3), 24)
        columns = np.stack([numbers[::-1], numbers, sums, sums * sums, numbers * sums])
        loops.add_products(sums[None], columns, numbers[None, :K])
        found[f"normals, {name}"], found[f"products, {name}"] = digest(numbers), digest(sums)
    for least in (1, 1 << 60):  # compiled and not
        fast.LEAST = least
        for kind in ("swag", "diagonal", "low_rank"):
            for dtype in (torch.float32, torch.float64):
                draws = posterior(dtype).sample(11, 7, first=30, kind=kind, scale=0.7)
                found[f"{kind}, {dtype}, {'compiled' if least == 1 else 'numpy'}"] = digest(draws.numpy())
    mixture = MixturePosterior([posterior(torch.float32)] * 3, [1, 2, 4])
    found["components"] = "".join(str(mixture.component(5, number)) for number in range(40))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
