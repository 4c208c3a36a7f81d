"""Rules that look at one coordinate at a time (Yin et al. 2018, "Byzantine-Robust Distributed Learning")."""

from jaxtyping import Float
from torch import Tensor

from dswag.core.chunked import Rows, middle_mean
from dswag.federation.aggregation.robust import Total


def median(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float[Tensor, "d"]:
    """The coordinate-wise median (there, Definition 1): of an even number, the mean of the two in the middle."""
    return middle_mean(rows, (len(rows) - 1) // 2)


def trimmed_mean(rows: Rows, anchor: Float[Tensor, "d"], byzantine: int, total: Total) -> Float[Tensor, "d"]:
    """The coordinate-wise mean without the f lowest and the f highest values (there, Definition 2)."""
    return middle_mean(rows, byzantine)
