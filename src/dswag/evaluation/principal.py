"""The posterior's principal directions: the leading eigenvectors of its covariance.

The covariance is diag(v) + FᵀF with F [k, d], as `GaussianPosterior.factors` gives it; no matrix of size d x d is made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

CHUNK = 1 << 16
"""Elements of θ brought to float64 at a time."""


@dataclass(frozen=True, eq=False)
class Principal:
    """Eigenvalues of a covariance, the largest first, and their eigenvectors, of length 1."""

    values: Float64[Tensor, "m"]
    vectors: Float64[Tensor, "m d"]

    @property
    def steps(self) -> Float64[Tensor, "m d"]:
        """The eigenvectors at a length of one standard deviation."""
        return self.values.sqrt()[:, None] * self.vectors

    def coordinates(self, offsets: Float[Tensor, "n d"]) -> Float64[Tensor, "n m"]:
        """How far each offset from the mean goes along each eigenvector, in standard deviations."""
        along = self.vectors.new_zeros(len(offsets), len(self.vectors))
        for part in _parts(offsets.shape[1]):
            along += offsets[:, part].double() @ self.vectors[:, part].T
        return along / self.values.sqrt()


def principal(
    v: Float[Tensor, "d"],
    factor: Float[Tensor, "k d"],
    count: int,
    *,
    tolerance: float = 1e-6,
    iterations: int = 200,
) -> Principal:
    """The leading eigenvectors of diag(v) + FᵀF.

    By locally optimal block conjugate gradients (Knyazev 2001) without a preconditioner: Rayleigh-Ritz on the span of
    the vectors, their residuals and their last steps, which costs 3 `count` products with F an iteration. It starts
    from the axes of the largest variances and from the eigenvectors of FᵀF, which the Gram matrix F Fᵀ [k, k] gives;
    so where v is zero it is done at once.

    Args:
        v: the diagonal part; zeros for the eigenvectors of the low-rank part alone.
        factor: F.
        count: m.
        tolerance: largest length of Σu - λu, as a share of λ.
        iterations: limit on their number.

    Raises:
        ValueError: more eigenvectors than the covariance has, or no convergence.
    """
    _check_count(v, factor, count)
    basis = _orthonormal(_start(v, factor, min(2 * count, len(v))))
    vectors = previous = basis[:, :0]
    for _ in range(iterations):
        image = _product(v, factor, basis)
        values, rotation = torch.linalg.eigh(basis.T @ image)
        leading = rotation[:, -count:].flip(1)
        values = values[-count:].flip(0)
        previous, vectors = vectors, basis @ leading
        residual = image @ leading - values * vectors
        if bool((residual.norm(dim=0) <= tolerance * values).all()):
            return Principal(values, _signed(vectors.T))
        step = previous - vectors @ (vectors.T @ previous)
        basis = _orthonormal(torch.cat([vectors, residual, step], 1))
    worst = float((residual.norm(dim=0) / values).max())
    raise ValueError(
        f"the eigenvectors did not converge: Σu - λu is {worst:.1e} of λ after {iterations} iterations, more than "
        f"{tolerance:.1e}: ask for fewer, or for a larger tolerance"
    )


def total_variance(v: Float[Tensor, "d"], factor: Float[Tensor, "k d"]) -> float:
    """The trace of diag(v) + FᵀF, the sum of all eigenvalues."""
    return float(v.double().sum() + factor.double().square().sum())


def _product(v: Tensor, factor: Tensor, basis: Float64[Tensor, "d n"]) -> Float64[Tensor, "d n"]:
    """(diag(v) + FᵀF) basis in float64, by parts of θ, so that no copy of F is made."""
    projected = basis.new_zeros(len(factor), basis.shape[1])
    for part in _parts(len(v)):
        projected += factor[:, part].double() @ basis[part]
    image = v.double()[:, None] * basis
    for part in _parts(len(v)):
        image[part].addmm_(factor[:, part].double().T, projected)
    return image


def _parts(d: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, d, CHUNK)]


def _start(v: Float[Tensor, "d"], factor: Float[Tensor, "k d"], count: int) -> Float64[Tensor, "d n"]:
    """Eigenvectors of FᵀF = Σ λ u uᵀ with u = Fᵀz / √λ from F Fᵀ z = λ z, and axes of the largest variances."""
    gram = torch.zeros(len(factor), len(factor), dtype=torch.float64, device=v.device)
    for part in _parts(len(v)):
        gram += factor[:, part].double() @ factor[:, part].double().T
    values, z = torch.linalg.eigh(gram)
    leading = z[:, values > 1e-12 * values.sum()][:, -count:]
    low_rank = torch.cat([factor[:, part].double().T @ leading for part in _parts(len(v))])
    axes = torch.zeros(len(v), count, dtype=torch.float64, device=v.device)
    largest = v.topk(count).indices
    axes[largest, torch.arange(count, device=v.device)] = 1.0
    return torch.cat([low_rank, axes], 1)


def _orthonormal(vectors: Float64[Tensor, "d n"]) -> Float64[Tensor, "d r"]:
    """An orthonormal basis of their span, those of no length of their own left out."""
    q, r = torch.linalg.qr(vectors / vectors.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny))
    basis: Tensor = q[:, r.diagonal().abs() > 1e-10]
    return basis


def _signed(vectors: Float64[Tensor, "m d"]) -> Float64[Tensor, "m d"]:
    """Each with its largest element positive: an eigenvector has no sign of its own."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * largest.sign()


def _check_count(v: Tensor, factor: Tensor, count: int) -> None:
    if v.dim() != 1 or factor.dim() != 2 or factor.shape[1] != len(v):
        raise ValueError(f"a covariance needs v [d] and F [k, d], got {list(v.shape)} and {list(factor.shape)}")
    rank = len(v) if bool((v > 0).any()) else min(len(factor), len(v))
    if not 1 <= count <= rank:
        raise ValueError(f"the covariance has up to {rank} principal directions, got a count of {count}")
