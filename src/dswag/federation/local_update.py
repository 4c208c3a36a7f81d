"""How clients train, as settings say it and tasks carry it."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]
"""Of forward and backward passes: "bfloat16" runs them under autocast, and leaves the weights in float32."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """How a client turns minibatch gradients into steps (Algorithm 1, lines 8-9 and 20-21)."""

    batch_size: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    """Momentum of SGD; β₁ of AdamW."""
    nesterov: bool = False
    weight_decay: float = 0.0
    proximal: float = 0.0
    """μ of the term μ/2 ‖θ - payload's θ‖² that is added to the loss (FedProx, Li et al. 2020)."""
    clip_gradient: float | None = None
    """Norm to which a minibatch's gradient, including that of the proximal term, is shortened; no limit if None."""
    precision: Precision = "float32"
