"""State beside θ that training changes: what is pooled, what is computed anew from the weights, and what is refused.

Statistics of normalization layers are pooled from the clients (`client.batch_norm`); the vectors of spectral
normalization follow from the weights alone. Whatever else a forward pass in training writes into would be lost with
the task, silently, so that it is refused by name. A layer that is frozen (`core.normalization`) keeps its state.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from dswag.core.parameters import Layout


class RunningState:
    """The buffers of a replica: what they were, and which of them training may change.

    Args:
        module: the replica's own.
        modes: from `core.normalization.training_modes`.
        layout: which of the module's parameters belong to θ.
    """

    def __init__(self, module: nn.Module, modes: Mapping[str, bool], layout: Layout) -> None:
        theta = set(map(id, layout.select(module)))
        self.module = module
        self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._loaded = self.buffers
        self._spectral = [found for name, found in _spectral_norms(module) if modes[name] and found.is_of(theta)]
        normalizing = [name for name, layer in module.named_modules() if isinstance(layer, _NormBase)]
        self._known = {f"{name}.{buffer}".removeprefix(".") for name in normalizing for buffer in _STATISTICS}
        vectors = {id(vector) for spectral in self._spectral for vector in (spectral.u, spectral.v)}
        self._known |= {name for name, buffer in module.named_buffers() if id(buffer) in vectors}
        self._frozen = {name: p for name, p in module.named_parameters() if id(p) not in theta}
        self._versions = {name: _version(parameter) for name, parameter in self._frozen.items()}

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Sets the buffers to those given, otherwise to what they were; what follows from the weights is computed."""
        self._loaded = {**self.buffers, **given}
        load(self.module, self._loaded)
        for spectral in self._spectral:
            spectral.iterate()

    def check(self) -> None:
        """Raises ValueError where training has changed state that nobody accounts for.

        Buffers that a state dict leaves out are caches, which a model fills anew whenever it needs them.
        """
        kept = {
            f"{name}.{buffer}".removeprefix(".")
            for name, part in self.module.named_modules()
            for buffer in part._buffers.keys() - part._non_persistent_buffers_set
        }
        changed = [
            name
            for name, buffer in self.module.named_buffers()
            if name in kept - self._known and not self._is_as_it_was(name, buffer)
        ]
        moved = [name for name, parameter in self._frozen.items() if _version(parameter) != self._versions[name]]
        if changed:
            raise ValueError(
                f"training changes the buffers {changed}, which are no part of θ and not pooled, so that predictions "
                "would be made with those of the model given: put their layers into evaluation mode before "
                "training, in which they should keep them, take layers without running state (such as GroupNorm), or "
                "register what is only a cache with persistent=False"
            )
        if moved:
            raise ValueError(
                f"the forward pass changes the frozen parameters {moved} in place, which are no part of θ: make such "
                "averages of weights outside of the model, or leave them out of forward"
            )

    def _is_as_it_was(self, name: str, buffer: Tensor) -> bool:
        before = self._loaded.get(name)
        if before is None or before.shape != buffer.shape or before.dtype != buffer.dtype:
            return False
        both_nan = (before != before) & (buffer != buffer)
        return bool(((before == buffer) | both_nan).all())


def load(module: nn.Module, named: Mapping[str, Tensor]) -> None:
    """Copies the named values into the module's buffers, in place.

    Raises:
        ValueError: the module has no such buffer, or one of another shape; nothing is copied then.
    """
    present = dict(module.named_buffers())
    unknown = [name for name in named if name not in present]
    if unknown:
        raise ValueError(f"the model has no buffers {unknown}: these statistics belong to another model")
    misshapen = [name for name, value in named.items() if value.shape != present[name].shape]
    if misshapen:
        raise ValueError(f"buffers {misshapen} differ in shape from the model's: these statistics belong to another")
    for name, value in named.items():
        present[name].copy_(value)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def refresh_spectral_norms(module: nn.Module) -> None:
    """Iterates the vectors of every spectral normalization until its norm of the weight is settled, in place."""
    for _, spectral in _spectral_norms(module):
        spectral.iterate()


class _Spectral:
    """A spectrally normalized weight (Miyato et al. 2018): its vectors belong to the weight that they were made for."""

    def __init__(self, module: nn.Module, norm: SpectralNorm | _SpectralNorm, position: int = 0) -> None:
        self.module, self.norm, self.position = module, norm, position

    @property
    def u(self) -> Float[Tensor, "r"]:
        """Left singular vector."""
        old = isinstance(self.norm, SpectralNorm)
        found: Tensor = getattr(self.module, f"{self.norm.name}_u") if old else self.norm._u  # type: ignore[union-attr]
        return found

    @property
    def v(self) -> Float[Tensor, "s"]:
        """Right singular vector."""
        old = isinstance(self.norm, SpectralNorm)
        found: Tensor = getattr(self.module, f"{self.norm.name}_v") if old else self.norm._v  # type: ignore[union-attr]
        return found

    def is_of(self, parameters: set[int]) -> bool:
        """Whether the weight is made of any of these parameters, given by their ids."""
        if isinstance(self.norm, SpectralNorm):
            return id(getattr(self.module, f"{self.norm.name}_orig")) in parameters
        return any(id(parameter) in parameters for parameter in self.module.parameters())

    @torch.no_grad()
    def iterate(self) -> None:
        """Power iteration until ten steps change the norm by less than float32 can show, or 1,000 steps."""
        matrix, u, v, eps = self._matrix(), self.u, self.v, self.norm.eps
        norm = torch.tensor(torch.nan)
        for _ in range(100):
            for _ in range(10):
                v.copy_(F.normalize(torch.mv(matrix.t(), u), dim=0, eps=eps))
                u.copy_(F.normalize(torch.mv(matrix, v), dim=0, eps=eps))
            before, norm = norm, torch.dot(u, torch.mv(matrix, v))
            if abs(float(norm) - float(before)) <= 1e-7 * float(norm):
                return

    def _matrix(self) -> Float[Tensor, "r s"]:
        if isinstance(self.norm, SpectralNorm):
            return self.norm.reshape_weight_to_matrix(getattr(self.module, f"{self.norm.name}_orig"))
        stack = cast("ParametrizationList", self.module)
        names = ["original"] if stack.is_tensor else [f"original{i}" for i in range(stack.ntensors)]
        originals = [getattr(stack, name) for name in names]
        weight = originals[0] if self.position == 0 else stack[0](*originals)
        for earlier in list(stack)[1 : self.position]:
            weight = earlier(weight)
        return self.norm._reshape_weight_to_matrix(weight)


def _spectral_norms(module: nn.Module) -> Iterator[tuple[str, _Spectral]]:
    """Every spectral normalization, old and new form, by the name of the module that it is in the mode of."""
    for name, part in module.named_modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                yield name, _Spectral(part, hook)
        if isinstance(part, ParametrizationList):
            for position, norm in enumerate(part):
                if isinstance(norm, _SpectralNorm) and hasattr(norm, "_u"):
                    yield f"{name}.{position}", _Spectral(part, norm, position)


def _version(parameter: Tensor) -> tuple[int, int]:
    """What changes when somebody writes into the parameter, or gives it other memory."""
    return (0 if parameter.is_inference() else parameter._version), parameter.data_ptr()
