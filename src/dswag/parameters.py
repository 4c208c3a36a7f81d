"""θ as one flat vector, and the module whose parameters are views into it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

Selection = Callable[[str], bool] | Iterable[str]
"""Some of the parameters: their names, or a function that says of a name whether it is one of them."""


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in θ [d]: trainable parameters in the module's order, tied ones once, by name.

    Frozen parameters (`requires_grad=False`) and buffers are no part of θ.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module, only: Selection | None = None) -> "Layout":
        """The layout of a module's trainable parameters, or of those that `only` selects, in the module's order.

        Parameters that are not selected are no part of θ: they stay as they are in the module.

        Raises:
            TypeError: something other than a module, such as its class.
            ValueError: no trainable parameters, parameters that differ in dtype or device, or an unknown name selected.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"the model must be an instance of nn.Module, got {_named(module)}")
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameters: there is no θ to train; "
                "check requires_grad, or that layers are registered as attributes"
            )
        if only is not None:
            trainable = {name: trainable[name] for name in _selected(tuple(trainable), only)}
        kinds = {(p.dtype, p.device): name for name, p in trainable.items()}
        if len(kinds) > 1:
            found = ", ".join(f"{dtype} on {device} ({name})" for (dtype, device), name in kinds.items())
            raise ValueError(f"θ needs one dtype and one device, got {found}: move the model with model.to(...)")
        return cls(tuple(trainable), tuple(tuple(p.shape) for p in trainable.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def d(self) -> int:
        """The length of θ."""
        return sum(self.sizes)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in θ, by name."""
        stops = accumulate(self.sizes)
        return {name: slice(stop - size, stop) for name, size, stop in zip(self.names, self.sizes, stops, strict=True)}

    def subset(self, only: Selection) -> "Layout":
        """The layout of some of the parameters, in the same order.

        Raises:
            ValueError: unknown names, or an empty selection.
        """
        shapes = dict(zip(self.names, self.shapes, strict=True))
        names = _selected(self.names, only)
        return Layout(names, tuple(shapes[name] for name in names))

    def views(self, theta: Float[Tensor, "d"]) -> dict[str, Tensor]:
        """The parameters by name, each a view into θ."""
        self.check(theta)
        placed = zip(self.slices.items(), self.shapes, strict=True)
        return {name: theta[part].view(shape) for (name, part), shape in placed}

    def flatten(self, source: nn.Module | Mapping[str, Tensor]) -> Float[Tensor, "d"]:
        """A new θ with the values of a module or a state dict, matched by name.

        Raises:
            ValueError: a parameter is missing, or its shape differs.
        """
        tensors = self._select(source)
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    def write(self, theta: Float[Tensor, "d"], module: nn.Module) -> None:
        """Copies θ into the module's parameters, in place."""
        parameters = self._select(module)
        with torch.no_grad():
            for parameter, view in zip(parameters, self.views(theta).values(), strict=True):
                parameter.copy_(view)

    def bind(self, module: nn.Module) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """θ and its gradient, of which the module's parameters and their gradients are views from now on.

        All other parameters of the module are frozen.
        """
        theta = self.flatten(module)
        gradient = torch.zeros_like(theta)
        values, gradients = self.views(theta), self.views(gradient)
        module.requires_grad_(False)
        for name, parameter in zip(self.names, self._select(module), strict=True):
            parameter.data = values[name]
            parameter.requires_grad_(True)
            parameter.grad = gradients[name]
        return theta, gradient

    def check(self, theta: Tensor) -> None:
        """Raises ValueError unless θ is a vector of d elements."""
        if theta.shape != (self.d,):
            raise ValueError(f"θ must have shape [{self.d}] for these parameters, got {list(theta.shape)}")

    def _select(self, source: nn.Module | Mapping[str, Tensor]) -> list[Tensor]:
        found = dict(source.named_parameters(remove_duplicate=False)) if isinstance(source, nn.Module) else source
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ValueError(f"parameters {missing} are missing: expected {list(self.names)}, got {list(found)}")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tuple(found[name].shape) != shape:
                raise ValueError(
                    f"parameter {name} must have shape {list(shape)}, got {list(found[name].shape)}: "
                    "this is not the model that θ was made for"
                )
        return [found[name] for name in self.names]


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _selected(names: tuple[str, ...], only: Selection) -> tuple[str, ...]:
    """The selected ones of the names, in their order."""
    if callable(only):
        chosen = tuple(name for name in names if only(name))
    else:
        wanted = [only] if isinstance(only, str) else list(only)
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(f"there are no trainable parameters {unknown} to select: there are {list(names)}")
        chosen = tuple(name for name in names if name in wanted)
    if not chosen:
        raise ValueError(f"none of the parameters was selected: there are {list(names)}")
    return chosen
