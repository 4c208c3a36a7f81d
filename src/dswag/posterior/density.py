"""The density of N(mean, diag(v) + FᵀF) and what follows from it, without a matrix of size d.

With A = F diag(v)^-½ [k, d] and M = I + A Aᵀ [k, k], the inverse of the covariance Σ is
diag(v)^-½ (I - Aᵀ M⁻¹ A) diag(v)^-½ (Woodbury) and det Σ = det M · ∏ v (matrix determinant lemma).

Sums over θ are taken in float64 over parts of it, so that no copy of θ or F is made, several parts at a time on a pool
of threads, and added up in order: the number of threads changes no bit. All results are float64, since the log density
of a million parameters has more digits than float32 holds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core.threads import default_workers, ordered_map

CHUNK = 1 << 14
"""Elements of θ brought to float64 at a time; with twenty columns they stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, diag(v + floor) + FᵀF)."""

    mean: Float[Tensor, "d"]
    factors: Callable[[slice | Tensor], tuple[Float[Tensor, "p"], Float[Tensor, "k p"]]]
    """(v, F) of a part of θ, so that they need not exist as a whole."""
    floor: float = 0.0
    """A variance added to every parameter's own."""
    sizes: Mapping[str, int] | None = None
    """The parameters in θ, in order, for errors to name."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.floor) and self.floor >= 0):
            raise ValueError(f"floor is a variance and must be at least 0 and finite, got {self.floor}")

    @classmethod
    def of(
        cls, mean: Float[Tensor, "d"], v: Float[Tensor, "d"], factor: Float[Tensor, "k d"], *, floor: float = 0.0
    ) -> "Gaussian":
        """The Gaussian whose v and F lie in tensors."""
        return cls(mean, lambda part: (v[part], factor[:, part]), floor)

    @property
    def d(self) -> int:
        """The number of dimensions."""
        return len(self.mean)

    def part(self, part: slice | Tensor) -> tuple[Float64[Tensor, "p"], Float64[Tensor, "k p"]]:
        """The variances with the floor, and F, of a part of θ."""
        v, factor = self.factors(part)
        return v.double() + self.floor, factor.double()


def log_prob(gaussian: Gaussian, theta: Float[Tensor, "*n d"]) -> Float64[Tensor, "*n"]:
    """The log density of one θ [d], or of each row of [n, d], in nats: -½ (d ln 2π + ln det Σ + squared distance).

    Differentiable in θ.

    Raises:
        ValueError: a θ of another shape, or a Gaussian without a density.
    """
    rows = _displacements(gaussian, theta)
    sums = _sums(gaussian, rows)
    squared = _squared_distances(gaussian, rows, sums)
    return (-0.5 * (gaussian.d * math.log(2 * math.pi) + sums.log_det + squared)).reshape(theta.shape[:-1])


def mahalanobis(gaussian: Gaussian, theta: Float[Tensor, "*n d"]) -> Float64[Tensor, "*n"]:
    """The squared Mahalanobis distance (θ - mean)ᵀ Σ⁻¹ (θ - mean); its mean over draws is d. Differentiable in θ.

    Raises:
        ValueError: a θ of another shape, or a Gaussian without a density.
    """
    rows = _displacements(gaussian, theta)
    return _squared_distances(gaussian, rows, _sums(gaussian, rows)).reshape(theta.shape[:-1])


def entropy(gaussian: Gaussian) -> Float64[Tensor, ""]:
    """½ (d (1 + ln 2π) + ln det Σ), in nats; negative where the Gaussian is narrow.

    Raises:
        ValueError: a Gaussian without a density.
    """
    return 0.5 * (gaussian.d * (1 + math.log(2 * math.pi)) + _sums(gaussian).log_det)


def kl(p: Gaussian, q: Gaussian) -> Float64[Tensor, ""]:
    """KL(p ‖ q) = ½ (tr(Σ_q⁻¹ Σ_p) - d + squared distance of the means under q + ln det Σ_q - ln det Σ_p), in nats.

    Σ_p = diag(v_p) + F_pᵀF_p, so the trace is Σ_i v_p,i (Σ_q⁻¹)_ii and the squared distances under q of F_p's rows.
    With r = v_p / v_q, the terms of size d are gathered as r - 1 - ln r, none of which is negative, so that nearly
    equal Gaussians keep their digits.

    Raises:
        ValueError: another number of dimensions, or a Gaussian without a density.
    """
    if p.d != q.d:
        raise ValueError(f"both Gaussians must be over the same θ, got {p.d} and {q.d} dimensions")

    def rows(part: slice) -> Tensor:
        return torch.cat([(p.mean[part].double() - q.mean[part].double())[None], p.factors(part)[1].double()])

    sums = _sums(q, rows)
    low_rank = _squared_distances(q, rows, sums).sum() + sums.log_det_gram - _sums(p).log_det_gram
    identity = torch.eye(len(sums.gram), dtype=torch.float64, device=low_rank.device)
    whitening = torch.linalg.solve_triangular(sums.cholesky, identity, upper=False)  # M⁻¹ = whiteningᵀ whitening

    def diagonal(part: slice) -> tuple[Tensor]:
        v, factor = q.part(part)
        ratio = p.part(part)[0] / v
        explained = (whitening @ (factor * v.rsqrt())).square().sum(0)  # 1 - v_q,i (Σ_q⁻¹)_ii
        return ((ratio - 1 - ratio.log() - ratio * explained).sum(),)

    return 0.5 * (low_rank + _summed(q, diagonal)[0])


def covariance(gaussian: Gaussian, indices: Tensor | Sequence[int]) -> Float64[Tensor, "m m"]:
    """The covariance of the elements of θ with these indices; also where there is no density.

    Raises:
        ValueError: indices that are no list of integers from 0 to d - 1.
    """
    chosen = torch.as_tensor(indices, device=gaussian.mean.device)
    if chosen.dim() != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"indices must be integers [m], got {chosen.dtype} {list(chosen.shape)}")
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < gaussian.d):
        raise ValueError(f"indices must lie in 0 to {gaussian.d - 1}, got {int(chosen.min())} to {int(chosen.max())}")
    v, factor = gaussian.part(chosen)
    same = chosen[:, None] == chosen  # an index given twice is one parameter, not two independent ones
    return factor.T @ factor + same * v


@dataclass(frozen=True, eq=False)
class _Sums:
    """What one pass over θ gathers."""

    log_v: Float64[Tensor, ""]
    gram: Float64[Tensor, "k k"]
    """M."""
    projected: Float64[Tensor, "k n"]
    """A diag(v)^-½ x, for each displacement x."""

    @cached_property
    def cholesky(self) -> Float64[Tensor, "k k"]:
        lower: Tensor = torch.linalg.cholesky(self.gram)
        return lower

    @property
    def log_det_gram(self) -> Float64[Tensor, ""]:
        return 2 * self.cholesky.diagonal().log().sum()

    @property
    def log_det(self) -> Float64[Tensor, ""]:
        """The log determinant of Σ."""
        return self.log_v + self.log_det_gram


def _sums(gaussian: Gaussian, rows: Callable[[slice], Float64[Tensor, "n p"]] | None = None) -> _Sums:
    def term(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        v, factor = gaussian.part(part)
        scaled = factor * v.rsqrt()
        others = scaled if rows is None else torch.cat([scaled, rows(part) * v.rsqrt()])
        return (~(v > 0)).sum(), v.log().sum(), scaled @ others.T

    num_flat, log_v, products = _summed(gaussian, term)
    if num_flat:
        raise _no_density(gaussian, int(num_flat))
    k = len(products)
    identity = torch.eye(k, dtype=torch.float64, device=log_v.device)
    return _Sums(log_v, identity + products[:, :k], products[:, k:])


def _squared_distances(
    gaussian: Gaussian, rows: Callable[[slice], Float64[Tensor, "n p"]], sums: _Sums
) -> Float64[Tensor, "n"]:
    """xᵀ Σ⁻¹ x of each displacement x.

    Woodbury's difference xᵀ diag(v)⁻¹ x - xᵀ diag(v)⁻¹ Fᵀ M⁻¹ F diag(v)⁻¹ x cancels where F is large beside v. The same
    number is the least over z of ‖diag(v)^-½ (x - Fᵀz)‖² + ‖z‖², at z = M⁻¹ A diag(v)^-½ x: squares, for one more pass
    (`test_distances_along_the_columns_keep_their_digits`).
    """
    z = torch.cholesky_solve(sums.projected, sums.cholesky)

    def term(part: slice) -> tuple[Tensor]:
        v, factor = gaussian.part(part)
        return (((rows(part) - z.T @ factor) * v.rsqrt()).square().sum(1),)

    return z.square().sum(0) + _summed(gaussian, term)[0]


def _displacements(gaussian: Gaussian, theta: Float[Tensor, "*n d"]) -> Callable[[slice], Float64[Tensor, "n p"]]:
    if theta.dim() not in (1, 2) or theta.shape[-1] != gaussian.d:
        raise ValueError(f"θ must have shape [{gaussian.d}] or [n, {gaussian.d}], got {list(theta.shape)}")
    return lambda part: theta.reshape(-1, gaussian.d)[:, part].double() - gaussian.mean[part].double()


def _parts(gaussian: Gaussian) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, max(gaussian.d, 1), CHUNK)]


def _summed(gaussian: Gaussian, term: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The terms of all parts, added up in their order."""
    differentiable = torch.is_grad_enabled()  # which is this thread's alone

    def of_part(_: None, part: slice) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(differentiable):
            return term(part)

    workers = default_workers() if gaussian.mean.device.type == "cpu" else 1
    parts = _parts(gaussian)
    terms = ordered_map(of_part, [None] * min(workers, len(parts)), parts)
    return reduce(lambda sums, values: tuple(a + b for a, b in zip(sums, values, strict=True)), terms)


def _no_density(gaussian: Gaussian, num_flat: int) -> ValueError:
    where = ""
    if gaussian.sizes is not None:
        flat = torch.cat([~(gaussian.part(part)[0] > 0) for part in _parts(gaussian)])
        stops = accumulate(gaussian.sizes.values())
        counts = {n: int(flat[e - s : e].sum()) for (n, s), e in zip(gaussian.sizes.items(), stops, strict=True)}
        where = f" ({', '.join(f'{count} in {name}' for name, count in counts.items() if count)})"
    return ValueError(
        f"this Gaussian has no density: {num_flat} of {gaussian.d} elements of θ{where} have no variance of their own. "
        'kind="low_rank" and scale=0 leave it to none, and weights that no snapshot moved have none: use kind="swag" '
        'or "diagonal" with a positive scale, or add a variance that you choose to every element with floor=...'
    )
