"""One posterior of several clients that each hold one (docs/combining.md says which way to use when)."""

from dswag.combining.mixture import MixturePosterior
from dswag.combining.pool import pooled
from dswag.combining.precision import product
from dswag.combining.wasserstein import wasserstein_median

__all__ = ["MixturePosterior", "pooled", "product", "wasserstein_median"]
