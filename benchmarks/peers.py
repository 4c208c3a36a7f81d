"""The nearest operations of other libraries, where they are installed; `python benchmarks/posterior.py` runs them.

    pip install --group peers

torch-uncertainty's package imports torchvision and Lightning, which its SWAG wrapper does without: its module is loaded
from the folder of the package, so that `pip install --no-deps torch-uncertainty` is enough for that one.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Peer:
    """What another library takes for it; None for what it does not have."""

    name: str
    add: Callable[[], object] | None
    """Takes in one snapshot of the same tensors."""
    draw: Callable[[], object]
    """Makes one draw."""
    kind: str
    """What of ours draws from the like."""


def torch_uncertainty(tensors: Sequence[Tensor], rank: int) -> Peer:
    """The SWAG wrapper, with columns."""
    model = _Holder(tensors)
    wrapper = _module("torch_uncertainty", "methods", "swag").SWAG(
        model, cycle_start=0, cycle_length=1, max_num_models=rank, num_estimators=0
    )
    for epoch in range(rank):
        wrapper.update_wrapper(epoch + 1)
    return Peer("torch-uncertainty", lambda: wrapper.update_wrapper(1), lambda: wrapper.sample(1.0), "swag")


def laplace(tensors: Sequence[Tensor], rank: int) -> Peer:
    """The diagonal Laplace approximation, of a Hessian that is given."""
    approximation = import_module("laplace").DiagLaplace(_Holder(tensors), "regression")
    approximation.mean = torch.cat([tensor.flatten() for tensor in tensors])
    approximation.H = torch.ones_like(approximation.mean)
    return Peer("laplace-torch", None, lambda: approximation.sample(1), "diagonal")


def posteriors(tensors: Sequence[Tensor], rank: int) -> Peer:
    """The diagonal Gaussian of its Laplace approximation."""
    module = import_module("posteriors.laplace.diag_fisher")
    state = module.init({str(i): tensor for i, tensor in enumerate(tensors)}, 1.0)
    return Peer("posteriors", None, lambda: module.sample(state), "diagonal")


def installed(tensors: Sequence[Tensor], rank: int) -> tuple[list[Peer], list[str]]:
    """The libraries that are there, and the names of those that are not."""
    found, missing = [], []
    for make in (torch_uncertainty, laplace, posteriors):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(make(tensors, rank))
        except ImportError:
            missing.append(make.__name__)
    return found, missing


class _Holder(nn.Module):
    """A module of these parameters."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.held = nn.ParameterList(tensors)

    def forward(self, inputs: Tensor) -> Tensor:
        """Nothing: only the parameters are of interest."""
        return inputs


def _module(package: str, *path: str) -> Any:
    """A module inside a package, whose own imports are left out."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is not installed")
    folder, name = spec.submodule_search_locations[0], package
    for part in path:
        parent = sys.modules[name] = ModuleType(name)
        parent.__path__ = [folder]
        folder, name = f"{folder}/{part}", f"{name}.{part}"
    return import_module(name)
