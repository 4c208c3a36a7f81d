"""Nearest-neighbor mixing, before a robust rule (Allouah et al. 2023, "Fixing by Mixing")."""

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.chunked import Rows, gram, over_parts, squared_distances
from dswag.federation.aggregation.robust import Function, Rule, Total


def mixing(rule: Rule) -> Rule:
    """The rule after each row has become the mean of the n - f rows nearest to it, itself among them (there, NNM).

    Clients whose data differ are so brought together before the rule has to tell them from malicious ones. If all
    honest rows lie within r of their mean, the mixed ones lie within r (1 + 2 f / (n - f)) of it, whatever the f others
    are: what an honest row takes in from them is no further from it than its furthest honest neighbor.
    """
    return Rule(f"nnm-{rule.name}", _after_mixing(rule.function), rule.spare)


def _after_mixing(function: Function) -> Function:
    def mixed(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float[Tensor, "d"]:
        near = nearest_neighbors(rows, anchor, byzantine, total)
        return function(near, anchor, byzantine, total).to(rows[0].dtype)

    return mixed


def nearest_neighbors(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Rows:
    """Of each row the mean of the n - f rows nearest to it, in float32 at least; of equally near ones the first."""
    squared = squared_distances(total(gram(rows, anchor)))
    chosen = torch.sort(squared, dim=1, stable=True).indices[:, : len(rows) - byzantine]
    weights = torch.zeros_like(squared).scatter_(1, chosen, 1 / chosen.shape[1]).to(rows[0].device)
    dtype = torch.promote_types(rows[0].dtype, torch.float32)
    outcome = torch.empty(len(rows), len(rows[0]), dtype=dtype, device=rows[0].device)

    def fill(part: Tensor, place: slice) -> None:
        part = part.double()
        first = part[0].clone()  # differences to it keep the digits of rows that hardly differ
        outcome[:, place] = weights @ (part - first) + first

    for _ in over_parts(fill, rows):
        pass
    return outcome.unbind()
