"""The product of the clients' posteriors, with the prior counted once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from dswag.posterior.combining.clients import checked, layout_of, means, sum_over_parts, variances
from dswag.posterior.gaussian import GaussianPosterior


def product(
    posteriors: Sequence[GaussianPosterior], *, prior: GaussianPosterior | float | None, floor: float | None = None
) -> GaussianPosterior:
    """p(θ | all data) ∝ Π p_c(θ) / prior(θ)^(W - 1), for diagonal Gaussians: no columns go in, none come out.

    The data of different clients are independent given θ, so their likelihoods multiply; each client's posterior holds
    the prior once, so W - 1 of the W are divided out again. Precisions add: with λ = 1 / v, λ = Σ λ_c - (W - 1) λ_0 and
    λ m = Σ λ_c m_c - (W - 1) λ_0 m_0. Exact for such posteriors (`test_product_is_the_posterior_of_all_data`).

    Args:
        posteriors: of the clients, over the same parameters, each given its own data alone.
        prior: the prior of every client: a Gaussian, or the precision of one around 0; None if it was flat. There is no
            default, because a prior that is not divided out counts W times.
        floor: the least variance; smaller ones are raised to it. Without it a client whose variance is close to zero,
            be it only a rounding error, decides alone.

    Raises:
        ValueError: no posteriors, or some that `clients.checked` refuses; without a floor,
            variances of zero, or so small that draws equal the mean in this dtype; a prior that is narrower than the
            posteriors, which then cannot contain it.
    """
    clients = checked(posteriors)
    if floor is not None and not 0 < floor < float("inf"):
        raise ValueError(f"floor must be positive and finite, got {floor}")
    started = _checked_prior(prior, clients)
    mean, variance = torch.empty_like(clients[0].mean), torch.empty_like(clients[0].mean)

    def fill(part: slice) -> Tensor:
        client_means, client_variances = means(clients, part), variances(clients, part)
        vanishing = _vanishing(client_means, client_variances, mean.dtype)
        if floor is not None:
            client_variances.clamp_min_(floor)
        precisions = client_variances.reciprocal()
        anchor = client_means[0].clone()  # of which differences lose no digits
        prior_mean, prior_precision = _prior_part(started, anchor, part)
        surplus = (len(clients) - 1) * prior_precision
        precision = precisions.sum(0) - surplus
        moment = (precisions * (client_means - anchor)).sum(0) - surplus * (prior_mean - anchor)
        mean[part], variance[part] = anchor + moment / precision, precision.reciprocal()
        return torch.cat([vanishing, (precision <= 0).sum()[None]])

    *vanishing, impossible = sum_over_parts(fill, clients, 5 * len(clients)).tolist()
    _refuse(vanishing if floor is None else [], impossible, len(mean))
    return GaussianPosterior(
        mean=mean,
        variance=variance,
        deviations=mean.new_empty(0, len(mean)),
        count=sum(client.count for client in clients),
        layout=layout_of(clients),
        temperature=clients[0].temperature,
        link=clients[0].link,
    )


def _checked_prior(
    prior: GaussianPosterior | float | None, clients: Sequence[GaussianPosterior]
) -> GaussianPosterior | float:
    if isinstance(prior, GaussianPosterior):
        layout = layout_of(clients)
        if prior.mean.shape != clients[0].mean.shape or (layout and prior.layout and prior.layout != layout):
            raise ValueError(
                "the prior must be over the same parameters as the posteriors: expected "
                f"d = {len(clients[0].mean)}, got d = {len(prior.mean)}, or the layouts differ"
            )
        if prior.mean.device != clients[0].mean.device:
            raise ValueError(f"the prior must be on {clients[0].mean.device}, got {prior.mean.device}")
        if (prior.factors("diagonal")[0] == 0).any():
            raise ValueError("the prior's variance must be positive: a prior without spread leaves nothing to learn")
        return prior
    precision = 0.0 if prior is None else float(prior)
    if not 0 <= precision < float("inf"):
        raise ValueError(f"the prior's precision must be at least 0 and finite, got {precision}")
    return precision


def _prior_part(prior: GaussianPosterior | float, like: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Mean and precision of a part of the prior."""
    if isinstance(prior, GaussianPosterior):
        return means([prior], part)[0], variances([prior], part)[0].reciprocal()
    return torch.zeros_like(like), torch.full_like(like, prior)


def _vanishing(
    client_means: Float64[Tensor, "w p"], client_variances: Float64[Tensor, "w p"], dtype: torch.dtype
) -> Tensor:
    """For each client, how many variances are zero, or below what the dtype resolves at the size of the weight."""
    resolved = torch.finfo(dtype).eps * client_means.abs().amax(0)
    return ((client_variances == 0) | (client_variances < resolved.square())).sum(1)


def _refuse(vanishing: Sequence[int], impossible: int, d: int) -> None:
    if any(vanishing):
        named = ", ".join(f"{number} of posterior {client}" for client, number in enumerate(vanishing) if number)
        raise ValueError(
            f"variances that vanish would outweigh all others: {named} (of {d} each) are zero or too small for the "
            "dtype to resolve; pass floor=... to say how sure a client may be"
        )
    if impossible:
        raise ValueError(
            f"the precision is not positive for {impossible} of {d} parameters: the clients' posteriors are wider "
            "there than the prior that each should hold, so dividing by it leaves nothing; give the prior that the "
            "clients used, a wider one, or None"
        )
