"""θ of one replica: the flat vector whose views, or casts, are the parameters of its module."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.core.parameters import Layout


class Weights:
    """θ and its gradient as flat vectors, bound to a module: each parameter is a view into θ, its gradient likewise.

    A parameter of another dtype than θ's, such as bfloat16, is a cast of its part of θ: `cast` rounds θ into it, so
    that steps which are small beside a weight add up in θ. All other parameters of the module are frozen.

    Args:
        layout: which parameters belong to θ, and where they lie.
        module: changed in place.
        gradient: whether to train; without, no memory is spent on a gradient.
    """

    def __init__(self, layout: Layout, module: nn.Module, *, gradient: bool = True) -> None:
        self.layout = layout
        self.theta: Float[Tensor, d] = layout.flatten(module)
        self.gradient: Float[Tensor, d] = torch.zeros_like(self.theta) if gradient else self.theta.new_empty(0)
        self._parameters = layout.select(module)
        self.values = tuple(layout.views(self.theta).values())
        self.gradients = tuple(layout.views(self.gradient).values()) if gradient else ()
        self._casts = tuple(i for i, p in enumerate(self._parameters) if p.dtype != self.theta.dtype)
        self._reached: list[Tensor] = []  # parameters to which the last backward pass gave a gradient
        module.requires_grad_(False)
        for i, parameter in enumerate(self._parameters):
            if i not in self._casts:
                parameter.data = self.values[i]
                parameter.grad = self.gradients[i] if gradient else None
            if gradient:
                parameter.requires_grad_(True)
                parameter.register_post_accumulate_grad_hook(self._reached.append)  # type: ignore[no-untyped-call]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each parameter lies in θ."""
        return tuple(self.layout.slices.values())

    def load(self, theta: Float[Tensor, "d"]) -> None:
        """Sets θ, and with it the module's parameters."""
        self.layout.check(theta)
        self.theta.copy_(theta.detach())
        self.cast()

    def snapshot(self) -> Float[Tensor, "d"]:
        """A copy of θ."""
        return self.theta.clone()

    def cast(self) -> None:
        """Rounds θ into the parameters that have another dtype."""
        with torch.no_grad():
            for i in self._casts:
                self._parameters[i].copy_(self.values[i])

    def backward(self, loss: Tensor) -> Sequence[bool] | None:
        """Fills the gradient with that of the loss, and says of each parameter whether the loss used it.

        None stands for all of them: the usual case. The gradient is 0 where the loss used nothing.
        """
        self.gradient.zero_()
        for i in self._casts:
            self._parameters[i].grad = None
        self._reached.clear()
        loss.backward()  # type: ignore[no-untyped-call]
        for i in self._casts:
            if (found := self._parameters[i].grad) is not None:
                self.gradients[i].copy_(found.to_dense() if found.is_sparse else found)
        reached = set(map(id, self._reached))
        self._reached.clear()
        if len(reached) == len(self._parameters):
            return None
        return tuple(id(parameter) in reached for parameter in self._parameters)

    def parts(self) -> list[nn.Parameter]:
        """θ's parts in the shapes of the module's parameters, which an optimizer takes."""
        return [nn.Parameter(values) for values in self.values]
