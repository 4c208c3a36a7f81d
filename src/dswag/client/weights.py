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

    On a CPU the weights of convolutions lie with their channels last, for which its kernels are faster. So the order of
    elements in `theta` and `gradient` is the replica's own; `load` and `snapshot` take and give that of the layout.

    Args:
        layout: which parameters belong to θ, and where they lie.
        module: changed in place.
        gradient: whether to train; without, no memory is spent on a gradient.
    """

    def __init__(self, layout: Layout, module: nn.Module, *, gradient: bool = True) -> None:
        self.layout = layout
        self.theta: Float[Tensor, d] = layout.flatten(module)
        self.gradient: Float[Tensor, d] = torch.zeros_like(self.theta) if gradient else self.theta.new_empty(0)
        self.parameters = layout.select(module)
        self._casts = tuple(i for i, p in enumerate(self.parameters) if p.dtype != self.theta.dtype)
        self._reached: list[Tensor] = []  # parameters to which the last backward pass gave a gradient
        module.requires_grad_(False)
        if gradient:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
                parameter.register_post_accumulate_grad_hook(self._reached.append)  # type: ignore[no-untyped-call]
        kernels = {id(part.weight) for part in module.modules() if isinstance(part, nn.Conv2d) and part.groups == 1}
        fast = self.theta.device.type == "cpu" and self.theta.dtype == torch.float32
        turned = frozenset(i for i, p in enumerate(self.parameters) if fast and id(p) in kernels)
        self._lay_out(self.theta.clone() if turned else self.theta, turned)

    @property
    def channels_last(self) -> bool:
        """Whether the weights of any convolution have their channels last."""
        return bool(self._turned)

    def make_contiguous(self) -> None:
        """Lays all weights out as the model had them, for a model that needs what it computes in that order."""
        self._lay_out(self.snapshot(), frozenset())

    def _lay_out(self, theta: Float[Tensor, "d"], turned: frozenset[int]) -> None:
        """Makes the module's parameters views into θ (or casts), those with these numbers with their channels last."""
        self._turned = turned
        self.values = self._views(self.theta)
        self.gradients = self._views(self.gradient) if len(self.gradient) else ()
        for i, parameter in enumerate(self.parameters):
            if i in self._casts:
                form = torch.channels_last if i in turned else torch.contiguous_format
                parameter.data = parameter.data.contiguous(memory_format=form)
            else:
                parameter.data = self.values[i]
                parameter.grad = self.gradients[i] if self.gradients else None
        self.load(theta)

    def _views(self, flat: Float[Tensor, "d"]) -> tuple[Tensor, ...]:
        """The parts of θ or its gradient in the shapes of the parameters."""
        views = list(self.layout.views(flat).values())
        for i in self._turned:
            out, channels, height, width = views[i].shape
            views[i] = views[i].view(out, height, width, channels).permute(0, 3, 1, 2)
        return tuple(views)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each parameter lies in θ."""
        return tuple(self.layout.slices.values())

    def load(self, theta: Float[Tensor, "d"]) -> None:
        """Sets θ, and with it the module's parameters."""
        self.layout.check(theta)
        if not self._turned:
            self.theta.copy_(theta.detach())
        else:
            for value, given in zip(self.values, self.layout.views(theta.detach()).values(), strict=True):
                value.copy_(given)
        self.cast()

    def snapshot(self) -> Float[Tensor, "d"]:
        """A copy of θ."""
        return torch.cat([value.reshape(-1) for value in self.values]) if self._turned else self.theta.clone()

    def cast(self) -> None:
        """Rounds θ into the parameters that have another dtype."""
        with torch.no_grad():
            for i in self._casts:
                self.parameters[i].copy_(self.values[i])

    def backward(self, loss: Tensor) -> Sequence[bool] | None:
        """Fills the gradient with that of the loss, and says of each parameter whether the loss used it.

        None stands for all of them: the usual case. The gradient is 0 where the loss used nothing.
        """
        self.gradient.zero_()
        for i in self._casts:
            self.parameters[i].grad = None
        self._reached.clear()
        loss.backward()  # type: ignore[no-untyped-call]
        for i in self._casts:
            if (found := self.parameters[i].grad) is not None:
                self.gradients[i].copy_(found.to_dense() if found.is_sparse else found)
        reached = set(map(id, self._reached))
        self._reached.clear()
        if len(reached) == len(self.parameters):
            return None
        return tuple(id(parameter) in reached for parameter in self.parameters)

    def parts(self) -> list[nn.Parameter]:
        """θ's parts in the shapes of the module's parameters, which an optimizer takes."""
        return [nn.Parameter(values) for values in self.values]
