"""One posterior of several clients that each hold one (docs/combining.md says which way to use when)."""

from dswag.posterior.combining.mixture import MixturePosterior
from dswag.posterior.combining.pool import pooled
from dswag.posterior.combining.precision import product
from dswag.posterior.combining.wasserstein import wasserstein_median

__all__ = ["MixturePosterior", "pooled", "product", "wasserstein_median"]
