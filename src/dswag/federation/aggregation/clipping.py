"""Updates of bounded length, before any rule sees them (Sun et al. 2019, "Can You Really Backdoor FL?")."""

import torch
from jaxtyping import Float
from torch import Tensor


def clipped(theta: Float[Tensor, "d"], anchor: Float[Tensor, "d"], longest: float | None) -> Float[Tensor, "d"]:
    """A client's θ, its update θ - anchor shortened to the norm `longest`; as it is where that is shorter, or no limit.

    No client then moves a mean of n further than longest / n, wherever it is.
    """
    if longest is None:
        return theta
    update = theta.double() - anchor.double()
    length = float(torch.linalg.vector_norm(update))
    return theta if length <= longest else update.mul_(longest / length).add_(anchor).to(anchor.dtype)
