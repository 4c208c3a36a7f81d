"""One Gaussian with the mean and covariance of the clients' mixture: the law of total covariance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.posterior.combining.clients import (
    Weights,
    centered,
    checked,
    layout_of,
    means,
    normalized,
    over_parts,
    sum_over_parts,
    total_moments,
)
from dswag.posterior.deviations import check_rank, compression
from dswag.posterior.gaussian import GaussianPosterior


def pooled(
    posteriors: Sequence[GaussianPosterior], weights: Weights | None = None, *, rank: int = 20
) -> GaussianPosterior:
    """N(mean, covariance) of the mixture of the clients' posteriors.

    The mean is Σ w_c m_c, the covariance Σ w_c C_c + Σ w_c (m_c - mean)(m_c - mean)ᵀ. By default w_c is the client's
    share of all n snapshots. Then the result is, up to rounding, the posterior of one `Moments` over all snapshots, if
    no columns are lost: every client has kept all of its columns, or principal ones of full rank, and `rank` is at
    least n - 1 (`test_pooling_is_what_moments_over_all_snapshots_give`).

    Diagonal and columns both follow that law. Columns estimate the covariance with a divisor n - 1, whereas the
    variance is divided by n; so each client's columns are rescaled to n_c first, and the sum to n - 1. They are then
    compressed to the best approximation of rank `rank`, which does not change the variance. The variance within clients
    is the mean of theirs, Σ w_c v_c; the part of a column within clients comes from their columns, the rest from the
    offsets of their means. The clients' scales are applied to their parts beforehand, and those of the result are 1.

    If no client has columns, the result has none either.

    Args:
        posteriors: of the clients, over the same parameters.
        weights: w_c up to a factor; the clients' snapshot counts if None.
        rank: largest number of columns of the result; 0 for none.

    Raises:
        ValueError: no posteriors, or some that `clients.checked` refuses; impossible weights;
            a rank of 1, below 0 or above 10,000; a count that is not known; columns of some clients but not of all.
    """
    check_rank(rank)
    clients = checked(posteriors)
    total = _total_count(clients)
    shares = normalized(weights, clients)
    mean, variance, within = total_moments(clients, shares)
    columns = _Columns(clients, shares, total)
    deviations, deviations_within = columns.compressed(rank if rank and _have_columns(clients) else 0)
    spread = bool(within.any())
    return GaussianPosterior(
        mean=mean,
        variance=variance,
        deviations=deviations,
        count=total,
        layout=layout_of(clients),
        variance_within=within if spread else None,
        deviations_within=deviations_within if spread else None,
        temperature=clients[0].temperature,
        link=clients[0].link,
    )


class _Columns:
    """The rows R by which RᵀR is the low-rank covariance: the clients' columns, then the offsets of their means."""

    def __init__(self, clients: Sequence[GaussianPosterior], weights: Float64[Tensor, "w"], total: int) -> None:
        self.clients = clients
        self.weights = weights
        self.unbiased = total / (total - 1)
        self.num_within = sum(len(client.deviations) for client in clients)
        self.num_rows = self.num_within + len(clients)

    def compressed(self, rank: int) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d"]]:
        """At most `rank` columns D, by which D Dᵀ / (k - 1) is nearest to RᵀR, and their part within clients."""
        like = self.clients[0].mean
        if not rank:
            return like.new_empty(0, len(like)), like.new_empty(0, len(like))
        gram = sum_over_parts(self._inner_products, self.clients, 2 * self.num_rows)
        directions = compression(gram, rank, torch.finfo(like.dtype).eps)
        found, k = len(directions), max(2, len(directions))  # a single one gets an empty companion, as k - 1 divides
        directions *= (k - 1) ** 0.5
        columns, columns_within = like.new_zeros(k, len(like)), like.new_zeros(k, len(like))

        def fill(part: slice) -> None:
            rows = self._rows(part)
            columns[:found, part] = directions @ rows
            columns_within[:found, part] = directions[:, : self.num_within] @ rows[: self.num_within]

        for _ in over_parts(fill, self.clients, 2 * self.num_rows):
            pass
        return columns, columns_within

    def _inner_products(self, part: slice) -> Float64[Tensor, "r r"]:
        rows = self._rows(part)
        return rows @ rows.T

    def _rows(self, part: slice) -> Float64[Tensor, "r p"]:
        _, offsets = centered(means(self.clients, part), self.weights)
        within = []
        for client, weight in zip(self.clients, self.weights.tolist(), strict=True):
            if len(client.deviations):
                factor = weight * self.unbiased * (client.count - 1) / client.count
                within.append(factor**0.5 * client.factors("low_rank", part=part)[1].double())
        return torch.cat([*within, (self.weights * self.unbiased).sqrt()[:, None] * offsets])


def _total_count(clients: Sequence[GaussianPosterior]) -> int:
    for number, client in enumerate(clients):
        least = max(1, len(client.deviations))
        if client.count < least:
            raise ValueError(
                f"posterior {number} must be made of at least {least} snapshots, got count = {client.count}: "
                "set it with dataclasses.replace(posterior, count=...)"
            )
    total = sum(client.count for client in clients)
    if total < 2:
        raise ValueError("a pool needs at least 2 snapshots, got 1: a single one has no spread")
    return total


def _have_columns(clients: Sequence[GaussianPosterior]) -> bool:
    """Whether the columns can hold the whole covariance; clients without any spread need none."""
    without = [number for number, c in enumerate(clients) if not len(c.deviations) and c.variance.any()]
    holders = [number for number, c in enumerate(clients) if len(c.deviations)]
    if without and holders:
        raise ValueError(
            f"posteriors {without} have no deviation columns but others have: the pool's would miss their spread; "
            "give them columns, or pass rank=0"
        )
    return not without
