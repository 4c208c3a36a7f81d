"""A step of local SGD on the flat θ (Algorithm 1, lines 8-9 and 20-21)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.optim.sgd import sgd

from dswag.client.replica import Workspace
from dswag.core.randomness import DrawFrom
from dswag.federation.contract import ClientUpdate


class Step:
    """One step of the optimizer on the flat θ from one minibatch, in place; keeps the optimizer's state."""

    def __init__(self, update: ClientUpdate, workspace: Workspace, generator: Generator) -> None:
        self.descend = _descent(update, workspace.theta, workspace.gradient)
        self.update = update
        self.start = workspace.theta.clone() if update.proximal else None
        self.workspace = workspace
        self.randomness = DrawFrom(generator)

    def __call__(self, inputs: Any, targets: Tensor, rate: float) -> Tensor:
        """The minibatch's mean loss before the step."""
        workspace = self.workspace
        workspace.gradient.zero_()
        targets = targets.to(workspace.device, non_blocking=True)
        randomness = self.randomness if workspace.draws_randomly else nullcontext()
        with randomness, workspace.computing_in(self.update.precision):
            loss = workspace.mean_loss(workspace.outputs(inputs), targets)
        workspace.draws_randomly = self.randomness.used
        loss.backward()  # type: ignore[no-untyped-call]
        if self.start is not None:
            workspace.gradient.add_(workspace.theta, alpha=self.update.proximal)
            workspace.gradient.sub_(self.start, alpha=self.update.proximal)
        if self.update.clip_gradient is not None:
            _shorten(workspace.gradient, self.update.clip_gradient)
        self.descend(rate)
        return loss.detach()


def _shorten(gradient: Float[Tensor, "d"], longest: float) -> None:
    """Scales the gradient to this norm, in place, where it is longer."""
    gradient.mul_((longest / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_max(1))


def _descent(update: ClientUpdate, theta: Float[Tensor, "d"], gradient: Float[Tensor, "d"]) -> Callable[[float], None]:
    """What takes a step from the gradient at a learning rate, in place; it keeps the optimizer's state.

    SGD without the optimizer around it, which costs a tenth of a small network's step.
    """
    if update.optimizer == "adamw":
        parameter = nn.Parameter(theta)
        parameter.grad = gradient
        betas = (update.momentum, 0.999)
        optimizer = torch.optim.AdamW([parameter], betas=betas, weight_decay=update.weight_decay, fused=True)

        def adamw(rate: float) -> None:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()

        return adamw
    momenta: list[Tensor | None] = [None]

    def descend(rate: float) -> None:
        sgd(
            [theta],
            [gradient],
            momenta,
            lr=rate,
            momentum=update.momentum,
            nesterov=update.nesterov,
            weight_decay=update.weight_decay,
            dampening=0.0,
            maximize=False,
            fused=True,
        )

    return descend
