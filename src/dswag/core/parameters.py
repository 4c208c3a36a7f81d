"""θ as one flat vector: where each of a module's parameters lies in it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from dswag.core.adapters import adapters, check_unmerged, without_adapter

Selection = Callable[[str], bool] | Iterable[str]
"""Some of the parameters: their names, or a function that says of a name whether it is one of them."""


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in θ [d]: trainable parameters in the module's order, tied ones once, by name.

    Frozen parameters (`requires_grad=False`) and buffers are no part of θ. Names are those of the model itself,
    whatever is wrapped around it (`unwrapped`).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module, only: Selection | None = None) -> "Layout":
        """The layout of a module's trainable parameters, or of those that `only` selects, in the module's order.

        Parameters that are not selected are no part of θ: they stay as they are in the module.

        Raises:
            TypeError: something other than a module, such as its class.
            ValueError: no trainable parameters, parameters that differ in device, are complex or not initialized yet,
                or an unknown name selected.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"the model must be an instance of nn.Module, got {_named(module)}")
        named = unwrapped(module).named_parameters()
        trainable = {unwrapped_name(name): parameter for name, parameter in named if parameter.requires_grad}
        if not trainable:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameters: there is no θ to train; "
                "check requires_grad, or that layers are registered as attributes"
            )
        if only is not None:
            trainable = {name: trainable[name] for name in _selected(tuple(trainable), only)}
        for name, parameter in trainable.items():
            _check_real(name, parameter)
        devices = {p.device: name for name, p in trainable.items()}
        if len(devices) > 1:
            found = ", ".join(f"{device} ({name})" for device, name in devices.items())
            raise ValueError(f"θ needs one device, got {found}: move the model with model.to(...)")
        return cls(tuple(trainable), tuple(tuple(p.shape) for p in trainable.values()))

    def __repr__(self) -> str:
        shapes = [f"{name} {list(shape)}" for name, shape in zip(self.names, self.shapes, strict=True)]
        more = f", ... ({len(shapes)} parameters)" if len(shapes) > 4 else ""
        return f"Layout({self.d:,} weights: {', '.join(shapes[:4])}{more})"

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

        It is float64 if any of them is, and float32 otherwise: half precision has too few digits to sum small steps.

        Raises:
            ValueError: a parameter is missing, its shape differs, or it has no values.
        """
        tensors = self.select(source)
        _check_whole(self.names, tensors)
        empty = [name for name, tensor in zip(self.names, tensors, strict=True) if tensor.is_meta]
        if empty:
            raise ValueError(f"parameters {_first(empty)} are on the meta device, without values: load weights first")
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        return torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])

    def write(self, theta: Float[Tensor, "d"], module: nn.Module) -> None:
        """Copies θ into the module's parameters, in place."""
        parameters = self.select(module)
        _check_whole(self.names, parameters)
        check_unmerged(module)
        with torch.no_grad():
            for parameter, view in zip(parameters, self.views(theta).values(), strict=True):
                parameter.copy_(view)

    def check(self, theta: Tensor) -> None:
        """Raises ValueError unless θ is a vector of d elements."""
        if theta.shape != (self.d,):
            raise ValueError(f"θ must have shape [{self.d}] for these parameters, got {list(theta.shape)}")

    def select(self, source: nn.Module | Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors of a module or a state dict that make up θ, in the order of θ.

        Raises:
            ValueError: a parameter is missing, or its shape differs.
        """
        if isinstance(source, nn.Module):
            found: Mapping[str, Tensor] = parameters(source)
        else:
            found = {unwrapped_name(name): tensor for name, tensor in source.items()}
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ValueError(
                f"parameters {_first(missing)} are missing: expected {_first(self.names)}, got {_first(list(found))}"
            )
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tuple(found[name].shape) != shape:
                raise ValueError(
                    f"parameter {name} must have shape {list(shape)}, got {list(found[name].shape)}: "
                    "this is not the model that θ was made for"
                )
        return [found[name] for name in self.names]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel, which put a word before its names."""
    parallel = isinstance(module, DataParallel | DistributedDataParallel)
    inner = module.module if parallel else getattr(module, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def is_split(tensor: object) -> bool:
    """Whether a tensor is one of which each process holds a part (DTensor)."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def unwrapped_name(name: str) -> str:
    """A name without the words that torch.compile puts where a part of a model was compiled."""
    return ".".join(word for word in name.split(".") if word != "_orig_mod")


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of a module by name: tied ones under each of theirs, adapters' as their files have them too."""
    inner = unwrapped(module)
    named = {unwrapped_name(name): parameter for name, parameter in inner.named_parameters(remove_duplicate=False)}
    for adapter in adapters(inner):
        named = {without_adapter(name, adapter): parameter for name, parameter in named.items()} | named
    return named


def _check_real(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"parameter {name} has no shape yet: pass one batch of inputs through the model first")
    flat = getattr(parameter, "_fsdp_flattened", False) or type(parameter).__name__ == "FlatParameter"
    if hasattr(parameter, "ds_id") or flat:
        tool, instead = ("DeepSpeed", "FSDP2") if hasattr(parameter, "ds_id") else ("FSDP1", "FSDP2 (fully_shard)")
        raise ValueError(
            f"parameter {name} was taken apart by {tool}, which leaves this process a piece of it under its name: "
            f"use {instead}, or take the posterior from whole checkpoints, with dswag collect"
        )
    if parameter.is_complex():
        raise ValueError(f"parameter {name} is {parameter.dtype}: θ is of real numbers, so keep two real parameters")


def _check_whole(names: Iterable[str], tensors: Iterable[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if is_split(tensor):
            raise ValueError(
                f"parameter {name} is split among processes (DTensor), so that this one has no whole θ: give the "
                "module to Moments.add, posterior.sampled or posterior.mean_into, which take each process's part"
            )


def _first(names: Sequence[str], count: int = 4) -> str:
    """The first of many names, as a list, and how many more there are."""
    more = len(names) - count
    return str(list(names)) if more <= 1 else f"{list(names[:count])} and {more} more"


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
