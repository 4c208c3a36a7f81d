"""Training results with random weights, and folds of them, for the tests of what the server makes of them."""

import numpy as np
import torch

from dswag.federation.client_results import TrainResult


def make_results(count, d=40, seed=0, spread=1.0):
    """Results of two snapshots each, from clients with unequal numbers of examples."""
    rng = np.random.default_rng(seed)
    return [
        TrainResult(
            index=index,
            client=index + 3,
            thetas=torch.from_numpy((spread * rng.standard_normal((2, d))).astype(np.float32)),
            num_examples=int(rng.integers(1, 500)),
            loss=float(rng.random()),
        )
        for index in range(count)
    ]


def results_of(rows):
    """One result with one snapshot for each row, in order."""
    return [
        TrainResult(index=index, client=index, thetas=row[None], num_examples=10, loss=1.0)
        for index, row in enumerate(rows)
    ]


def folded(fold, results):
    """The fold, after it took them in."""
    for result in results:
        fold.add(result)
    return fold
