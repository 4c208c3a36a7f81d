"""A second device where there is none: its tensors lie in main memory, and say that they are elsewhere.

Operations on tensors of both devices fail here as they do on a GPU, and so do random operations with a generator of the
other device. So a model that is trained on it finds the places where something was left behind, on any machine.
Autocast changes nothing here.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

import dswag.core.randomness

NAME = "elsewhere"
ATEN = torch.ops.aten

BRINGING = {ATEN.copy_.default, ATEN._to_copy.default}
"""Operations that take tensors from one device to another."""

INDEXING = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default}
"""Operations whose indices may be in main memory."""

SEEDS: set[int] = set()
"""Of generators of the device. An operation is handed a generator without its type, and only the seed tells it."""


class Backend(_DummyBackendModule):
    def is_available(self):
        """Not to those who look for a device of their own accord."""
        return False

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Hook(_DummyPrivateUse1Hook):
    def is_available(self):
        return False


class Generator(torch.Generator):
    """A generator of the device."""

    def manual_seed(self, seed):
        SEEDS.add(seed)
        return super().manual_seed(seed)


class Elsewhere(Tensor):
    """A tensor on the device, around one with its values in main memory."""

    @staticmethod
    def __new__(cls, values):
        return Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, values):
        self.values_here = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})

    def __repr__(self):
        return f"Elsewhere({self.values_here})"

    def __getitem__(self, index):
        return super().__getitem__(_tensors(index))

    def __setitem__(self, index, value):
        super().__setitem__(_tensors(index), value)

    def _get_data(self):
        return self.detach()

    def _set_data(self, other):
        Tensor.data.__set__(self, other)
        self.values_here = other.values_here

    data = property(_get_data, _set_data)

    def untyped_storage(self):
        return self.values_here.untyped_storage()

    def new_tensor(self, data):
        return torch.tensor(data, dtype=self.dtype, device=self.device)

    def tolist(self):
        return self.cpu().tolist()


def install(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, until the test ends.

    What makes tensors from numbers does so without dispatch, so here it first makes them in main memory.
    """
    for name in ("tensor", "as_tensor"):
        make = getattr(torch, name)

        def made(data, *, device=None, _make=make, **options):
            return _make(data, **options) if device is None else _make(data, **options).to(device)

        monkeypatch.setattr(torch, name, made)
    monkeypatch.setattr(
        dswag.core.randomness,
        "Generator",
        lambda device=None: torch.Generator() if device is None or device.type == "cpu" else Generator(),
    )
    return torch.device(NAME, 0)


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the values, with its results on the device where those of a GPU would be."""
    given = tree_leaves((args, kwargs))
    there = [value for value in given if isinstance(value, Elsewhere)]
    here = [value for value in given if isinstance(value, Tensor) and not isinstance(value, Elsewhere)]
    device = kwargs.get("device")
    on_device = bool(there) if device is None else torch.device(device).type == NAME
    if there and here and not _may_mix(func, given, here):
        found = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in (*there, *here))
        raise RuntimeError(f"expected all tensors of {func} to be on the same device, got {found}")
    if any(isinstance(value, torch.Generator) and (value.initial_seed() in SEEDS) != on_device for value in given):
        raise RuntimeError(f"expected a generator of {NAME if on_device else 'cpu'} for {func}")
    wrappers = {id(tensor.values_here): tensor for tensor in there}

    def values(value):
        return value.values_here if isinstance(value, Elsewhere) else value

    def wrapped(value):
        if not isinstance(value, Tensor):
            return value
        return wrappers.get(id(value)) if id(value) in wrappers else Elsewhere(value) if on_device else value

    options = tree_map(values, kwargs) | ({} if device is None else {"device": torch.device("cpu")})
    outcome = func(*tree_map(values, args), **options)
    return args[0] if func is ATEN.copy_.default else tree_map(wrapped, outcome)


def _may_mix(func: Any, given: list[Any], here: list[Tensor]) -> bool:
    """Whether a GPU takes tensors of both devices: to copy, as indices, and numbers that are not to be changed."""
    if func in BRINGING:
        return True
    first_there = isinstance(given[0], Elsewhere)
    if func in INDEXING:
        return first_there
    numbers = all(tensor.dim() == 0 for tensor in here) and torch.Tag.pointwise in func.tags
    return numbers and (first_there or not func._schema.is_mutable)


def _tensors(index: Any) -> Any:
    """An index whose lists are tensors."""
    if isinstance(index, tuple):
        return tuple(map(_tensors, index))
    return torch.tensor(index, dtype=None if index else torch.int64) if isinstance(index, list) else index


_setup_privateuseone_for_python_backend(NAME, Backend(), Hook())
_kernels = torch.library.Library("_", "IMPL")
_kernels.fallback(lambda func, *args, **kwargs: call(func, args, kwargs), "PrivateUse1")
_kernels.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
