"""Krum and multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries")."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core.chunked import Rows, gram, squared_distances, weighted_sum
from dswag.federation.aggregation.robust import Total


def krum(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float[Tensor, "d"]:
    """The row with the lowest score (there, Section 4): one client's weights, as they are."""
    return rows[int(_scores(rows, anchor, byzantine, total).argmin())].clone()


def multi_krum(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float[Tensor, "d"]:
    """The mean of the n - f rows with the lowest scores (there, Section 5)."""
    chosen = _scores(rows, anchor, byzantine, total).argsort(stable=True)[: len(rows) - byzantine].sort().values
    equal = torch.full((len(chosen),), 1 / len(chosen), dtype=torch.float64, device="cpu")
    return weighted_sum(equal, [rows[number] for number in chosen.tolist()])


def _scores(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float64[Tensor, "n"]:
    """Of each row the sum of the squared distances to the n - f - 2 others nearest to it."""
    squared = squared_distances(total(gram(rows, anchor))).fill_diagonal_(torch.inf)
    return squared.sort(1).values[:, : len(rows) - byzantine - 2].sum(1)
