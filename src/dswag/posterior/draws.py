"""Which draws from a posterior: as data, for whoever is to make them."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["swag", "diagonal", "low_rank"]
"""Which covariance a draw uses: both halves, Σ_diag alone, or the columns alone."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The draws that a client makes from the payload's posterior: numbers `first` to `first + count - 1` of `seed`."""

    seed: int
    first: int
    count: int
    kind: Kind
    scale: float
    within_scale: float = 1.0
    between_scale: float = 1.0
