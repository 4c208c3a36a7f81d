"""A step of local SGD on the flat θ (Algorithm 1, lines 8-9 and 20-21)."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from dswag.client.replica import OptimizerFactory, Workspace
from dswag.client.weights import Weights
from dswag.core.randomness import DrawFrom
from dswag.federation.local_update import ClientUpdate


class Step:
    """One step of the optimizer on the flat θ from one minibatch, in place; keeps the optimizer's state."""

    def __init__(self, update: ClientUpdate, workspace: Workspace, generator: Generator) -> None:
        self.update = update
        self.descend: Descent | None = None
        self.start: Float[Tensor, d] | None = None
        self.workspace = workspace
        self.randomness = DrawFrom(generator)
        workspace.dropout.generator = generator

    def __call__(self, inputs: Any, targets: Tensor, rate: float) -> Tensor:
        """The minibatch's mean loss before the step."""
        workspace, weights = self.workspace, self.workspace.weights
        if self.descend is None:  # once the order of elements in θ is settled
            workspace.settle(inputs)
            self.descend = _descent(self.update, weights, workspace.optimizer)
            self.start = weights.theta.clone() if self.update.proximal else None
        randomness = self.randomness if workspace.draws_randomly else nullcontext()
        with randomness, workspace.computing_in(self.update.precision):
            loss, _ = workspace.loss_of(inputs, targets)
        workspace.draws_randomly = self.randomness.used
        used = weights.backward(loss)
        if self.start is not None:
            _attract(weights, self.start, self.update.proximal, used)
        if self.update.clip_gradient is not None:
            _shorten(weights.gradient, self.update.clip_gradient)
        self.descend(rate, used)
        weights.cast()
        return loss.detach()


def _attract(weights: Weights, start: Float[Tensor, "d"], strength: float, used: Sequence[bool] | None) -> None:
    """Adds the gradient of strength/2 ‖θ - start‖²; parameters that the loss did not use are where they started."""
    weights.gradient.add_(weights.theta, alpha=strength).sub_(start, alpha=strength)
    for part, is_used in zip(weights.slices, used or (), strict=False):
        if not is_used:
            weights.gradient[part] = 0


def _shorten(gradient: Float[Tensor, "d"], longest: float) -> None:
    """Scales the gradient to this norm, in place, where it is longer."""
    gradient.mul_((longest / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_max(1))


class Descent(Protocol):
    """What takes a step from the gradient, in place; it keeps the optimizer's state.

    As in `torch.optim`, parameters that the loss did not use stay as they are, and so does their part of the state:
    no weight decay, no momentum. `used` is None where it used all.
    """

    def __call__(self, rate: float, used: Sequence[bool] | None) -> None:
        """Takes a step at a learning rate."""


def _descent(update: ClientUpdate, weights: Weights, factory: OptimizerFactory | None) -> Descent:
    if factory is not None:
        return _Given(factory, weights)
    return _AdamW(update, weights) if update.optimizer == "adamw" else _SGD(update, weights)


class _SGD:
    """SGD without the optimizer around it, which costs a tenth of a small network's step.

    On θ as a whole until the loss leaves a parameter out; from then on parameter by parameter.
    """

    def __init__(self, update: ClientUpdate, weights: Weights) -> None:
        self.update, self.weights = update, weights
        self.whole: list[Tensor | None] = [None]  # the momentum
        self.parts: list[Tensor | None] = []

    def __call__(self, rate: float, used: Sequence[bool] | None) -> None:
        weights = self.weights
        if used is None and not self.parts:
            self._step([weights.theta], [weights.gradient], self.whole, rate)
            return
        slices = weights.slices
        if not self.parts:
            (momentum,) = self.whole
            self.parts = [None if momentum is None else momentum[part] for part in slices]
        chosen = [i for i in range(len(slices)) if used is None or used[i]]
        for known in (True, False):  # fused SGD takes parameters with a momentum or those without
            group = [i for i in chosen if (self.parts[i] is not None) == known]
            momenta = [self.parts[i] for i in group]
            thetas, gradients = ([flat[slices[i]] for i in group] for flat in (weights.theta, weights.gradient))
            self._step(thetas, gradients, momenta, rate)
            for i, momentum in zip(group, momenta, strict=True):
                self.parts[i] = momentum

    def _step(self, thetas: list[Tensor], gradients: list[Tensor], momenta: list[Tensor | None], rate: float) -> None:
        if thetas:
            sgd(
                thetas,
                gradients,
                momenta,
                lr=rate,
                momentum=self.update.momentum,
                nesterov=self.update.nesterov,
                weight_decay=self.update.weight_decay,
                dampening=0.0,
                maximize=False,
                fused=True,
            )


class _AdamW:
    """AdamW, on θ as a whole until the loss leaves a parameter out; from then on parameter by parameter."""

    def __init__(self, update: ClientUpdate, weights: Weights) -> None:
        self.weights = weights
        whole = nn.Parameter(weights.theta)
        whole.grad = weights.gradient
        self.update = update
        self.optimizer = self._over([whole])
        self.in_parts = False

    def __call__(self, rate: float, used: Sequence[bool] | None) -> None:
        if used is not None and not self.in_parts:
            self._divide()
        if self.in_parts:
            gradients = [self.weights.gradient[part] for part in self.weights.slices]
            _give(self.optimizer.param_groups[0]["params"], gradients, used)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()

    def _over(self, parameters: list[nn.Parameter]) -> Optimizer:
        betas = (self.update.momentum, 0.999)
        return torch.optim.AdamW(parameters, betas=betas, weight_decay=self.update.weight_decay, fused=True)

    def _divide(self) -> None:
        before = next(iter(self.optimizer.state.values()), None)
        parts = [nn.Parameter(self.weights.theta[part]) for part in self.weights.slices]
        self.optimizer = self._over(parts)
        for part, place in zip(parts, self.weights.slices, strict=True):
            if before is not None:
                averages = {name: before[name][place] for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[part] = {"step": before["step"].clone(), **averages}
        self.in_parts = True


class _Given:
    """The user's own optimizer, on the parameters in their own shapes.

    Without a schedule, the task's learning rate is that of the first group, and the other groups keep their ratio to
    it. A schedule is stepped after every minibatch, and the task's learning rates are not used.

    Raises:
        TypeError: the factory gives something else, or an optimizer that evaluates the loss itself.
    """

    def __init__(self, factory: OptimizerFactory, weights: Weights) -> None:
        self.weights = weights
        self.parts = weights.parts()
        made = factory(self.parts)
        self.schedule = made[1] if isinstance(made, tuple) else None
        self.optimizer = made[0] if isinstance(made, tuple) else made
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                "optimizer must be a function of the parameters that returns a torch.optim.Optimizer, or a pair of one "
                f"and its schedule, got {type(self.optimizer).__name__}"
            )
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise TypeError("LBFGS evaluates the loss several times a step, and clients do so once: take another")
        first = self.optimizer.param_groups[0]["lr"]
        if self.schedule is None and not first:
            raise ValueError("the learning rate of the first group of parameters must not be 0: others relate to it")
        self.ratios = [group["lr"] / first if first else 1.0 for group in self.optimizer.param_groups]

    def __call__(self, rate: float, used: Sequence[bool] | None) -> None:
        _give(self.parts, self.weights.gradients, used)
        if self.schedule is None:
            for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
                group["lr"] = rate * ratio
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()


def _give(parts: Sequence[nn.Parameter], gradients: Sequence[Tensor], used: Sequence[bool] | None) -> None:
    """Gives the parts of θ their gradients; none where the loss did not use the parameter, as PyTorch does."""
    for i, part in enumerate(parts):
        part.grad = gradients[i] if used is None or used[i] else None
