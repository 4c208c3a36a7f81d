"""No two records are compared tensor by tensor: `==` of tensors has no single answer, and raises in Python 3.13."""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

import dswag


def dataclasses_of_the_package():
    for module in pkgutil.walk_packages(dswag.__path__, "dswag."):
        if not module.name.endswith("__main__"):
            try:
                with warnings.catch_warnings(action="ignore"):  # of packages outside, at their first import
                    found = importlib.import_module(module.name)
            except ImportError:  # of an extra that is not installed
                continue
            for value in vars(found).values():
                if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                    yield value


def holds_tensors(annotation):
    if typing.get_origin(annotation) in (Callable, getattr(typing, "Callable", None)):
        return False
    if inspect.isclass(annotation):
        return issubclass(annotation, torch.Tensor | np.ndarray) or hasattr(annotation, "array_type")
    return any(holds_tensors(part) for part in typing.get_args(annotation))


def with_tensors():
    for cls in dataclasses_of_the_package():
        hints = typing.get_type_hints(cls)
        if any(holds_tensors(hints[field.name]) for field in dataclasses.fields(cls) if field.compare):
            yield cls


def test_dataclasses_that_hold_tensors_are_found():
    assert {dswag.GaussianPosterior, dswag.Server, dswag.Predictive} <= {*with_tensors()}


@pytest.mark.parametrize("cls", [*with_tensors()], ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_dataclass_with_tensors_is_equal_to_itself_alone_or_says_when(cls):
    generated = [base for base in cls.__mro__ if "__eq__" in vars(base) and base is not object]
    assert all("<string>" not in base.__eq__.__code__.co_filename for base in generated), "pass eq=False to dataclass"
