"""What the server does with the clients' aggregate: its Update (Algorithm 1, line 12).

An optimizer on the server treats the step from θ_t to the aggregate as a gradient (Reddi et al. 2021, "Adaptive
Federated Optimization", Algorithm 2). With "plain" and a rate of 1, θ_{t+1} is the aggregate itself, as in the paper.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.config import Config
from dswag.core.parameters import Layout


@dataclass(frozen=True, eq=False)
class Server:
    """The server's state after a round: everything that the next round depends on, apart from the settings."""

    theta: Float[Tensor, "d"] = field(repr=False)
    round: int = 0
    """Rounds done."""
    momentum: Float[Tensor, "d"] | None = field(default=None, repr=False)
    """m_t of the server's optimizer; None if it has none."""
    second_moment: Float[Tensor, "d"] | None = field(default=None, repr=False)
    """v_t of an adaptive optimizer; None if it has none."""
    layout: Layout | None = field(default=None, repr=False)
    """Where each parameter lies in θ; as in the clients' own models if None."""
    first_loss: float | None = None
    """Mean training loss of the first round, with which later ones are compared; None before it."""

    def to(self, device: torch.device) -> Self:
        """The same state on the device, where clients' answers come."""
        momentum, second = (None if m is None else m.to(device) for m in (self.momentum, self.second_moment))
        return replace(self, theta=self.theta.to(device), momentum=momentum, second_moment=second)


def step(server: Server, aggregate: Float[Tensor, "d"], config: Config) -> Server:
    """θ_{t+1} and the optimizer's state after a round in which the clients' weights were combined to `aggregate`.

    With Δ = aggregate - θ_t, β₁ and β₂ the server's momenta, η its rate and τ its epsilon:
    "momentum" m = β₁ m + Δ, θ + η m (FedAvgM, Hsu et al. 2019);
    "nesterov" m the same, θ + η (Δ + β₁ m), as `torch.optim.SGD` has it (DiLoCo, Douillard et al. 2023, Algorithm 1);
    "adagrad", "yogi" and "adam" m = β₁ m + (1 - β₁) Δ, θ + η m / (√v + τ) with v from τ² and
    v + Δ², v - (1 - β₂) Δ² sign(v - Δ²) and β₂ v + (1 - β₂) Δ² (Reddi et al. 2021, Algorithm 2, lines 10 to 14).
    """
    rate, beta1, beta2 = config.server.learning_rate, config.server.momentum, config.server.second_momentum
    done = replace(server, round=server.round + 1)
    if config.server.optimizer == "plain":
        theta = aggregate if rate == 1 else server.theta.lerp(aggregate, rate)
        return replace(done, theta=theta)
    delta = aggregate - server.theta
    if config.server.optimizer in ("momentum", "nesterov"):
        m = delta if server.momentum is None else delta.add(server.momentum, alpha=beta1)
        direction = m if config.server.optimizer == "momentum" else delta.add(m, alpha=beta1)
        return replace(done, theta=server.theta.add(direction, alpha=rate), momentum=m)
    square, tau = delta.square(), config.server.epsilon
    v = square.new_full(square.shape, tau**2) if server.second_moment is None else server.second_moment
    match config.server.optimizer:
        case "adagrad":
            v = v + square
        case "yogi":
            v = v.addcmul(square, (v - square).sign(), value=beta2 - 1)
        case "adam":
            v = v.lerp(square, 1 - beta2)
    m = (1 - beta1) * delta if server.momentum is None else server.momentum.lerp(delta, 1 - beta1)
    theta = server.theta.addcdiv(m, v.sqrt().add_(tau), value=rate)
    return replace(done, theta=theta, momentum=m, second_moment=v)
