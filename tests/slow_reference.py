"""Both algorithms as the paper prints them, read as docs/paper.md says: float64, one thing after another.

No library code takes part. The batches and the sampled clients are given: they are data, not what is computed.
"""

import torch
from torch import Tensor


def local_sgd(theta, batches_of_epochs, rates, gradient, *, momentum=0.0, weight_decay=0.0):
    """Lines 7-10: θ after every epoch of minibatch SGD from θ."""
    theta = theta.clone()
    velocity = torch.zeros_like(theta)
    after = []
    for batches, rate in zip(batches_of_epochs, rates, strict=True):
        for batch in batches:
            velocity = momentum * velocity + gradient(theta, batch) + weight_decay * theta
            theta = theta - rate * velocity
        after.append(theta)
    return after


def two_pass_moments(snapshots):
    """Lines 26-31 with the moments that line 27 means: mean and centered second moment, from all snapshots at once."""
    stacked = torch.stack([snapshot.double() for snapshot in snapshots])
    mean = stacked.mean(0)
    return mean, ((stacked - mean) ** 2).mean(0)


def columns_centered_on_final_mean(snapshots, rank):
    """Lines 28-29: the deviations of the last K snapshots from the final mean."""
    mean, _ = two_pass_moments(snapshots)
    return torch.stack([snapshot.double() - mean for snapshot in snapshots[-rank:]])


def columns_as_printed(snapshots, rank):
    """Lines 26-30 to the letter: deviations of the last K snapshots from the mean so far, themselves included."""
    mean = torch.zeros_like(snapshots[0], dtype=torch.float64)
    columns = []
    for n, snapshot in enumerate(snapshots):
        mean = (n * mean + snapshot.double()) / (n + 1)
        if n >= len(snapshots) - rank:
            columns.append(snapshot.double() - mean)
    return torch.stack(columns)


def covariance(variance: Tensor, columns: Tensor) -> Tensor:
    """Algorithm 2, line 2: ½ Σ_diag + D Dᵀ / (2 (k - 1)), as a d x d matrix."""
    return torch.diag(variance) / 2 + columns.T @ columns / (2 * (len(columns) - 1))
